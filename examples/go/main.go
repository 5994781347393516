// Command track records one event. It imports the stubs that generate.sh generates.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	metering "github.com/meterd/meterd/gen/go/metering/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := os.Getenv("METERD_SERVER")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	meterd := metering.NewUsageServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	event := &metering.UsageEvent{ClientId: "acme", Service: "openai", Operation: "chat_completion", Model: "gpt-4o-mini",
		InputTokens: 374, OutputTokens: 44, IdempotencyKey: "call-1"}
	answer, err := meterd.TrackUsage(ctx, &metering.TrackUsageRequest{Event: event})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Result.Outcome, answer.Result.Charge.Amount, answer.Result.Charge.Currency)
}
