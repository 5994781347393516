#!/usr/bin/env bash
# Creates a price and withdraws it. It applies to no event that is recorded later.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_service.sh" > /dev/null

created=$(grpcurl -plaintext -d '{
  "price": {
    "service": "example_ocr",
    "operation": "scan",
    "rates": {"unit": "150"},
    "note": "meant in cents"
  },
  "request_id": "example-retire-price"
}' "$server" metering.v1.CatalogService/CreatePrice)
price_id=$(grep -o '"priceId": "[0-9]*"' <<< "$created" | tr -dc 0-9)

grpcurl -plaintext -d '{"price_id": "'"$price_id"'"}' "$server" metering.v1.CatalogService/RetirePrice
