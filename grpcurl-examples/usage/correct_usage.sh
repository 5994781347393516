#!/usr/bin/env bash
# Records a message with one segment, and corrects it to three.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
event_id=$(grpcurl -plaintext -d '{"event": {"client_id": "demo", "service": "sms", "units": "1"}}' \
  "$server" metering.v1.UsageService/TrackUsage | sed -n 's/.*"eventId": "\([^"]*\)".*/\1/p')

grpcurl -plaintext -d '{
  "client_id": "demo",
  "corrections": [{
    "event": {"event_id": "'"$event_id"'"},
    "corrected": {"service": "sms", "units": "3"}
  }],
  "reason": "delivered with three segments"
}' "$server" metering.v1.UsageService/CorrectUsage
