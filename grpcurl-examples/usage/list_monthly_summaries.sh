#!/usr/bin/env bash
# Lists all clients with usage in the current month, the most expensive first, with the previous month for comparison
# and the totals of all.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/batch_track_usage.sh" > /dev/null
"$(dirname "$0")/update_monthly_summaries.sh" > /dev/null

grpcurl -plaintext -d '{"month": "'"$(date -u +%Y-%m)"'", "page_size": 10}' \
  "$server" metering.v1.UsageService/ListMonthlySummaries
