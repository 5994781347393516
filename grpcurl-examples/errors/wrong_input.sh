#!/usr/bin/env bash
# Sends an event with four mistakes. The error is INVALID_ARGUMENT and lists all four, each with its fix. Nothing is
# recorded. grpcurl exits with 64 plus the status code and prints errors on standard error.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

status=0
grpcurl -plaintext -d '{
  "event": {"service": "openia", "units": "-1", "input_tokens": 5, "cached_input_tokens": 9}
}' "$server" metering.v1.UsageService/TrackUsage 2>&1 || status=$?
[ "$status" = $((64 + 3)) ]
