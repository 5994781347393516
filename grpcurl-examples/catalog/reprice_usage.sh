#!/usr/bin/env bash
# Computes what the current month would cost by the prices that are in force now. Changes nothing.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "start_month": "'"$(date -u +%Y-%m)"'",
  "end_month": "'"$(date -u +%Y-%m)"'",
  "validate_only": true
}' "$server" metering.v1.CatalogService/RepriceUsage
