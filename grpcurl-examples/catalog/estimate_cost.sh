#!/usr/bin/env bash
# Computes the cost of an event, line by line, without recording it.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "service": "openai",
  "operation": "chat_completion",
  "model": "gpt-4o-mini",
  "input_tokens": 374,
  "output_tokens": 44
}' "$server" metering.v1.CatalogService/EstimateCost
