#!/usr/bin/env bash
# Reads a limit.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_limit.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-berlin", "limit_id": "messages"}' \
  "$server" metering.v1.BillingService/GetLimit
