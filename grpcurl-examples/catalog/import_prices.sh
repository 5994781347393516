#!/usr/bin/env bash
# Imports a list of prices, a price per page and a price for a batch of pages, and then imports it again: nothing changes.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_service.sh" > /dev/null

for _ in 1 2; do
  grpcurl -plaintext -d '{
    "source": "example list of November",
    "prices": [
      {"service": "example_ocr", "model": "pages-1", "rates": {"measures": {"pages": "0.0015"}}},
      {"service": "example_ocr", "model": "pages-1", "service_tier": "batch", "rates": {"measures": {"pages": "0.00075"}}}
    ]
  }' "$server" metering.v1.CatalogService/ImportPrices
done
