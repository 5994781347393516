#!/usr/bin/env bash
# Records an event and voids it. It counts in no sum.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
event_id=$(grpcurl -plaintext -d '{"event": {"client_id": "demo", "service": "sms", "units": "1"}}' \
  "$server" metering.v1.UsageService/TrackUsage | sed -n 's/.*"eventId": "\([^"]*\)".*/\1/p')

grpcurl -plaintext -d '{
  "client_id": "demo",
  "events": [{"event_id": "'"$event_id"'"}],
  "reason": "sent twice"
}' "$server" metering.v1.UsageService/VoidUsage
