#!/usr/bin/env bash
# Reads a recorded event by the id that TrackUsage returned.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
event_id=$("$(dirname "$0")/track_usage.sh" | sed -n 's/.*"eventId": "\([^"]*\)".*/\1/p')

grpcurl -plaintext -d '{"client_id": "demo", "event_id": "'"$event_id"'"}' \
  "$server" metering.v1.UsageService/GetUsageEvent
