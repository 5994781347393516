#!/usr/bin/env bash
# Sets the plan of a client from a time on. It replaces an earlier change for the same time.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "client_id": "example-berlin",
  "plan_id": "starter",
  "effective_time": "2026-11-01T00:00:00Z"
}' "$server" metering.v1.BillingService/SetClientPlan
