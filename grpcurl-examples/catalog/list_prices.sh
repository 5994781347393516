#!/usr/bin/env bash
# Lists the prices of the service openai.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"service": "openai"}' "$server" metering.v1.CatalogService/ListPrices
