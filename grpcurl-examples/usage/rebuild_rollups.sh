#!/usr/bin/env bash
# Computes a client's current month again from its events. Nothing is corrected where rollups and events agree already.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_id": "demo",
  "start_date": "'"$(date -u +%Y-%m-01)"'",
  "end_date": "'"$(date -u +%Y-%m-%d)"'"
}' "$server" metering.v1.UsageService/RebuildRollups
