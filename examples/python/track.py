"""Records one event. It imports the stubs that `generate.sh` generates."""

import os

import grpc
from metering.v1 import usage_service_pb2 as usage
from metering.v1 import usage_service_pb2_grpc as usage_grpc

with grpc.insecure_channel(os.environ.get("METERD_SERVER", "127.0.0.1:50051")) as channel:
    meterd = usage_grpc.UsageServiceStub(channel)
    event = usage.UsageEvent(client_id="acme", service="openai", operation="chat_completion", model="gpt-4o-mini",
                             input_tokens=374, output_tokens=44, idempotency_key="call-1")
    answer = meterd.TrackUsage(usage.TrackUsageRequest(event=event), timeout=10)
    print(usage.EventOutcome.Name(answer.result.outcome), answer.result.charge.amount, answer.result.charge.currency)
