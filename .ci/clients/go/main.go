// Streams events with grpc-go as fast as possible. Arguments: client id, number of streams, events per stream.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	meteringv1 "github.com/meterd/meterd/gen/go/metering/v1"
)

type report struct {
	Settled        int64    `json:"settled"`
	Duplicates     int64    `json:"duplicates"`
	SlowestCheckMs int64    `json:"slowest_check_ms"`
	Errors         []string `json:"errors"`
}

var (
	mutex  sync.Mutex
	result = report{Errors: []string{}}
)

func add(settled, duplicates int64, err string) {
	mutex.Lock()
	defer mutex.Unlock()
	result.Settled += settled
	result.Duplicates += duplicates
	if err != "" && len(result.Errors) < 3 {
		result.Errors = append(result.Errors, err)
	}
}

func run(ctx context.Context, service meteringv1.UsageServiceClient, clientID string, number, events int) {
	stream, err := service.StreamUsage(ctx)
	if err != nil {
		add(0, 0, err.Error())
		return
	}
	go func() {
		for event := 0; event < events; event++ {
			message := &meteringv1.StreamUsageRequest{Event: &meteringv1.UsageEvent{
				ClientId: clientID, Service: "email", IdempotencyKey: fmt.Sprintf("%d-%d", number, event),
			}}
			if stream.Send(message) != nil {
				return // The receiving loop gets the error.
			}
		}
		_ = stream.CloseSend()
	}()
	var settled int64
	for {
		ack, err := stream.Recv()
		if err == io.EOF {
			return
		}
		if err != nil {
			add(0, 0, err.Error())
			return
		}
		add(ack.SettledCount-settled, 0, "")
		settled = ack.SettledCount
		for _, each := range ack.Results {
			if each.Result.Outcome == meteringv1.EventOutcome_EVENT_OUTCOME_DUPLICATE {
				add(0, 1, "")
			} else {
				add(0, 0, each.Result.String())
			}
		}
	}
}

// Runs health checks on the same connection until the streams have ended.
func otherCalls(ctx context.Context, connection *grpc.ClientConn, done <-chan struct{}) {
	health := grpc_health_v1.NewHealthClient(connection)
	for {
		select {
		case <-done:
			return
		case <-time.After(50 * time.Millisecond):
		}
		started := time.Now()
		if _, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			add(0, 0, "health: "+err.Error())
		}
		result.SlowestCheckMs = max(result.SlowestCheckMs, time.Since(started).Milliseconds())
	}
}

func main() {
	clientID := os.Args[1]
	streams, _ := strconv.Atoi(os.Args[2])
	events, _ := strconv.Atoi(os.Args[3])
	connection, err := grpc.NewClient(os.Getenv("METERD_SERVER"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Second)
	defer cancel()
	fmt.Println("streaming")
	service := meteringv1.NewUsageServiceClient(connection)
	var sending, checking sync.WaitGroup
	done := make(chan struct{})
	checking.Go(func() { otherCalls(ctx, connection, done) })
	for number := range streams {
		sending.Go(func() { run(ctx, service, clientID, number, events) })
	}
	sending.Wait()
	close(done)
	checking.Wait()
	_ = json.NewEncoder(os.Stdout).Encode(result)
}
