#!/usr/bin/env bash
# Reads the current month up to today: the total, the sums by service and by day, and the two most expensive operations.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/batch_track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_id": "demo",
  "start_date": "'"$(date -u +%Y-%m-01)"'",
  "end_date": "'"$(date -u +%Y-%m-%d)"'",
  "top_operation_count": 2
}' "$server" metering.v1.UsageService/GetUsageSummary
