#!/usr/bin/env bash
# Records several events in one call. The third event is invalid on purpose: only this one is rejected.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "events": [
    {"client_id": "demo", "service": "twilio_sms", "operation": "outbound", "units": "3", "idempotency_key": "example-batch-1"},
    {"client_id": "demo", "service": "twilio_voice", "operation": "outbound", "units": "5.25", "idempotency_key": "example-batch-2"},
    {"client_id": "demo", "service": "stripe", "units": "none", "amount": "100", "idempotency_key": "example-batch-3"}
  ]
}' "$server" metering.v1.UsageService/BatchTrackUsage
