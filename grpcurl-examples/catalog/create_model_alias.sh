#!/usr/bin/env bash
# Adds an alias for a model. Events with the alias cost the same as events with the model's name.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "model_alias": {"service": "openai", "alias": "example-house-chat", "model": "gpt-4o-mini"},
  "request_id": "example-create-model-alias"
}' "$server" metering.v1.CatalogService/CreateModelAlias
