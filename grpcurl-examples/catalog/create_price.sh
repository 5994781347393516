#!/usr/bin/env bash
# Adds a price that is valid for all times. Events of the service without a price are then priced, too.
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
