#!/usr/bin/env bash
# Creates a limit and deletes it. Its open alerts are resolved.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/../clients/create_client.sh" > /dev/null

created=$(grpcurl -plaintext -d '{
  "limit": {
    "client_id": "example-berlin",
    "measure": "LIMIT_MEASURE_COST",
    "period": "LIMIT_PERIOD_DAY",
    "amount": "5"
  }
}' "$server" metering.v1.BillingService/CreateLimit)
limit_id=$(sed -n 's/.*"limitId": "\(.*\)".*/\1/p' <<< "$created")

grpcurl -plaintext -d '{"client_id": "example-berlin", "limit_id": "'"$limit_id"'"}' \
  "$server" metering.v1.BillingService/DeleteLimit
