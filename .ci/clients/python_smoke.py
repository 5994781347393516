"""Shows how a Python backend uses meterd: records an event, sends it again, reads the current month.

The stubs are generated from proto/ into a temporary directory. The server is $METERD_SERVER.
"""

import os
import sys
import tempfile
import uuid
from decimal import Decimal

import grpc
from generate import generate


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        generate(out)
        sys.path.insert(0, out)
        from metering.v1 import usage_service_pb2 as usage
        from metering.v1 import usage_service_pb2_grpc as usage_grpc

        client_id = f"python-{uuid.uuid4()}"
        event = usage.UsageEvent(
            client_id=client_id,
            service="openai",
            operation="chat_completion",
            model="gpt-4o-mini",
            input_tokens=374,
            output_tokens=44,
            idempotency_key="python-1",
        )
        event.metadata.update({"feature": "support chat", "attempt": 1})
        with grpc.insecure_channel(os.environ.get("METERD_SERVER", "127.0.0.1:50051")) as channel:
            service = usage_grpc.UsageServiceStub(channel)
            first = service.TrackUsage(usage.TrackUsageRequest(event=event), timeout=10).result
            assert first.outcome == usage.EVENT_OUTCOME_ACCEPTED, first
            assert Decimal(first.charge.amount) == 374 * Decimal("0.00000015") + 44 * Decimal("0.0000006"), first

            again = service.TrackUsage(usage.TrackUsageRequest(event=event), timeout=10).result
            assert again.outcome == usage.EVENT_OUTCOME_DUPLICATE, again
            assert again.event_id == first.event_id, (first, again)

            month = service.GetCurrentMonthUsage(usage.GetCurrentMonthUsageRequest(client_id=client_id), timeout=10)
            assert month.totals.request_count == 1, month
            assert month.totals.cost == first.charge, month

            event.input_tokens = 375
            try:
                service.TrackUsage(usage.TrackUsageRequest(event=event), timeout=10)
                raise AssertionError("another payload with the same key was accepted")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.ALREADY_EXISTS, error
    print("event accepted, duplicate recognized, counted once, conflict rejected")


main()
