#!/usr/bin/env bash
# Gives a model a second name: events under it cost what the model costs.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "model_alias": {"service": "openai", "alias": "example-house-chat", "model": "gpt-4o-mini"},
  "request_id": "example-create-model-alias"
}' "$server" metering.v1.CatalogService/CreateModelAlias
