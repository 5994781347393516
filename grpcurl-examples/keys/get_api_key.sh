#!/usr/bin/env bash
# Reads a key. The secret is never returned.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

key_id=$(grpcurl -plaintext -d '{"api_key": {"name": "example key",
    "grants": [{"scope": "SCOPE_INGEST", "all_clients": true}]}}' \
  "$server" metering.v1.KeyService/CreateApiKey | sed -n 's/.*"token": "mtr_\([0-9a-f]*\)_.*/\1/p')

grpcurl -plaintext -d "{\"key_id\": \"$key_id\"}" "$server" metering.v1.KeyService/GetApiKey
