#!/usr/bin/env bash
# Creates a price that is valid for all times. Recorded events that have no price yet, and that this price covers, are then
# priced too.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_service.sh" > /dev/null

grpcurl -plaintext -d '{
  "price": {
    "service": "example_ocr",
    "operation": "page",
    "rates": {"unit": "0.0015"}
  },
  "request_id": "example-create-price"
}' "$server" metering.v1.CatalogService/CreatePrice
