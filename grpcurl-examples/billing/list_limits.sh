#!/usr/bin/env bash
# Lists the limits of a client, ten per page.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_limit.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-berlin", "page_size": 10}' \
  "$server" metering.v1.BillingService/ListLimits
