#!/usr/bin/env bash
# Sends an idempotency key again with another payload. The error is ALREADY_EXISTS with the id of the event that has the
# key. Nothing is recorded.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/../usage/track_usage.sh" > /dev/null

status=0
grpcurl -plaintext -d '{
  "event": {"client_id": "demo", "service": "openai", "model": "gpt-4o-mini", "input_tokens": 999, "idempotency_key": "example-track-1"}
}' "$server" metering.v1.UsageService/TrackUsage 2>&1 || status=$?
[ "$status" = $((64 + 6)) ]
