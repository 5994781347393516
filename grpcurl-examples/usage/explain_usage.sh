#!/usr/bin/env bash
# Shows what a month of a client costs by price: quantities, rates and amounts.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
month=$(date -u +%Y-%m)

grpcurl -plaintext -d '{"client_id": "demo", "start_date": "'"$month"'-01", "end_date": "'"$(date -u +%Y-%m-%d)"'"}' "$server" \
  metering.v1.UsageService/ExplainUsage
