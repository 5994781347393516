#!/usr/bin/env bash
# Records an event and shows its cost. A second run returns DUPLICATE, because the idempotency key is the same.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "event": {
    "client_id": "demo",
    "service": "openai",
    "operation": "chat_completion",
    "model": "gpt-4o-mini",
    "input_tokens": 374,
    "output_tokens": 44,
    "subject": "user-17",
    "idempotency_key": "example-track-1",
    "metadata": {"feature": "support chat"}
  }
}' "$server" metering.v1.UsageService/TrackUsage
