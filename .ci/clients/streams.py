"""Real clients in several languages stream events as fast as they can, also while the database is stopped.

Arguments: the server's pid, and a command for each language as language=command. The server is $METERD_SERVER, its data
directory $METERD_DATA_DIR. Prints a row per case. Fails if any event is not settled, recorded and counted exactly once.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import grpc
from generate import generate

STREAMS = [(1, 20_000), (1, 50_000), (4, 5_000), (8, 5_000)]
STALL_SECONDS = 2
# The cases with a stalled database: those in which most events wait.
STALLED = [(1, 50_000), (8, 5_000)]


def postgres() -> list:
    """Returns the process ids of the embedded PostgreSQL."""
    pid = (pathlib.Path(os.environ["METERD_DATA_DIR"]) / "postgres/postmaster.pid").read_text().split()[0]
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(pid), *map(int, children)]


def stall() -> None:
    processes = postgres()
    for pid in processes:
        send(pid, signal.SIGSTOP)
    time.sleep(STALL_SECONDS)
    for pid in processes:
        send(pid, signal.SIGCONT)


def send(pid: int, number: int) -> None:
    """Sends a signal to a process, unless it has ended. The postmaster removes ended processes as soon as it continues."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def mebibytes(pid: str, field: str) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) // 1024


def run(command: list, streams: int, events: int, stalls: bool) -> tuple:
    client_id = f"streams-{uuid.uuid4()}"
    started = time.monotonic()
    client = subprocess.Popen([*command, client_id, str(streams), str(events)], stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline().strip() == "streaming"
    stalling = threading.Timer(0.5, stall)
    if stalls:
        stalling.start()
    report = json.loads(client.stdout.readline())
    seconds = time.monotonic() - started
    if stalls:
        stalling.join()
    assert client.wait(timeout=10) == 0
    return client_id, report, seconds


def main() -> int:
    pid, commands = sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:])
    passed = failed = 0
    with tempfile.TemporaryDirectory() as out, grpc.insecure_channel(os.environ["METERD_SERVER"]) as channel:
        generate(out)
        sys.path.insert(0, out)
        from metering.v1 import usage_service_pb2 as usage
        from metering.v1 import usage_service_pb2_grpc as usage_grpc

        service = usage_grpc.UsageServiceStub(channel)
        print("language  streams  stall     sent  settled  recorded  duplicates  seconds  other call ms  server MiB, top MiB")
        for language, command in commands.items():
            for stalls in (False, True):
                for streams, events in STALLED if stalls else STREAMS:
                    client_id, report, seconds = run(command.split(), streams, events, stalls)
                    request = usage.GetCurrentMonthUsageRequest(client_id=client_id)
                    recorded = service.GetCurrentMonthUsage(request, timeout=30).totals.request_count
                    sent = streams * events
                    right = report["settled"] == recorded == sent and not report["errors"]
                    right = right and report["duplicates"] == 0
                    passed, failed = passed + right, failed + (not right)
                    print(
                        f"{language:8}  {streams}×{events:<6} {f'{STALL_SECONDS} s' if stalls else '-':>4}"
                        f"  {sent:7}  {report['settled']:7}  {recorded:8}  {report['duplicates']:10}  {seconds:7.1f}"
                        f"  {report['slowest_check_ms']:13}  {mebibytes(pid, 'VmRSS')}, {mebibytes(pid, 'VmHWM')}"
                        f"{'' if right else '  WRONG: ' + '; '.join(report['errors'])}",
                        flush=True,
                    )
    print(f"{passed} passed, {failed} failed")
    return failed


sys.exit(1 if main() else 0)
