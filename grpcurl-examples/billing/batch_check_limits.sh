#!/usr/bin/env bash
# Shows the limits of all clients that have some, ten clients per page.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_limit.sh" > /dev/null

grpcurl -plaintext -d '{"page_size": 10}' "$server" metering.v1.BillingService/BatchCheckLimits
