"""Streams events with grpcio as fast as possible. Arguments: client id, number of streams, events per stream."""

import json
import os
import sys
import tempfile
import threading
import time

import grpc
from generate import generate


def main() -> None:
    client_id, streams, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as out:
        generate(out)
        sys.path.insert(0, out)
        from metering.v1 import usage_service_pb2 as usage
        from metering.v1 import usage_service_pb2_grpc as usage_grpc

        settled, duplicates, errors = [0] * streams, [0] * streams, []
        slowest, done = [0.0], threading.Event()

        def messages(number: int):
            for event in range(events):
                key = f"{number}-{event}"
                yield usage.StreamUsageRequest(
                    event=usage.UsageEvent(client_id=client_id, service="email", idempotency_key=key)
                )

        def run(number: int) -> None:
            try:
                for ack in service.StreamUsage(messages(number), timeout=300):
                    settled[number] = ack.settled_count
                    for result in ack.results:
                        if result.result.outcome == usage.EVENT_OUTCOME_DUPLICATE:
                            duplicates[number] += 1
                        else:
                            errors.append(str(result.result))
            except grpc.RpcError as error:
                errors.append(f"{error.code().name}: {error.details()}")

        def other_calls() -> None:
            # A health check without stubs. The request is an empty message, and SERVING is field 1 with the value 1.
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            while not done.wait(0.05):
                started = time.monotonic()
                try:
                    check(b"", timeout=60)
                except grpc.RpcError as error:
                    errors.append(f"health: {error.code().name}: {error.details()}")
                slowest[0] = max(slowest[0], time.monotonic() - started)

        with grpc.insecure_channel(os.environ["METERD_SERVER"]) as channel:
            service = usage_grpc.UsageServiceStub(channel)
            print("streaming", flush=True)
            threads = [threading.Thread(target=run, args=(number,)) for number in range(streams)]
            others = threading.Thread(target=other_calls)
            for thread in [*threads, others]:
                thread.start()
            for thread in threads:
                thread.join()
            done.set()
            others.join()
    print(json.dumps({
        "settled": sum(settled),
        "duplicates": sum(duplicates),
        "slowest_check_ms": round(slowest[0] * 1000),
        "errors": errors[:3],
    }))


main()
