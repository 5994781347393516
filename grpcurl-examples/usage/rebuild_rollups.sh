#!/usr/bin/env bash
# Recomputes the sums of a client's current month from its events. Changes nothing if the sums are already correct.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_id": "demo",
  "start_date": "'"$(date -u +%Y-%m-01)"'",
  "end_date": "'"$(date -u +%Y-%m-%d)"'"
}' "$server" metering.v1.UsageService/RebuildRollups
