#!/usr/bin/env bash
# Groups a client's usage of the current month by service and model, and counts the active users of each group exactly.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_ids": ["demo"],
  "start_date": "'"$(date -u +%Y-%m-01)"'",
  "end_date": "'"$(date -u +%Y-%m-%d)"'",
  "group_by": ["USAGE_DIMENSION_SERVICE", "USAGE_DIMENSION_MODEL"],
  "count_subjects": true
}' "$server" metering.v1.UsageService/QueryUsage
