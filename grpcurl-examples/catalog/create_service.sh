#!/usr/bin/env bash
# Creates a custom service. With a request_id, a repeated call returns the first result instead of SERVICE_EXISTS.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "service": {
    "service": "example_ocr",
    "display_name": "Page recognition",
    "category": "SERVICE_CATEGORY_AI",
    "unit": "page"
  },
  "request_id": "example-create-service"
}' "$server" metering.v1.CatalogService/CreateService
