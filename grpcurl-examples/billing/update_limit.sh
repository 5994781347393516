#!/usr/bin/env bash
# Changes the amount of a limit. update_mask names the fields to change, so the others are unchanged.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_limit.sh" > /dev/null

grpcurl -plaintext -d '{
  "limit": {"client_id": "example-berlin", "limit_id": "messages", "amount": "2000"},
  "update_mask": {"paths": ["amount"]}
}' "$server" metering.v1.BillingService/UpdateLimit
