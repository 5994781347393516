#!/usr/bin/env bash
# Creates a new key that replaces an old one. The old key stays valid for an hour.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

key_id=$(grpcurl -plaintext -d '{"api_key": {"name": "example key",
    "grants": [{"scope": "SCOPE_INGEST", "all_clients": true}]}}' \
  "$server" metering.v1.KeyService/CreateApiKey | sed -n 's/.*"token": "mtr_\([0-9a-f]*\)_.*/\1/p')

grpcurl -plaintext -d "{\"key_id\": \"$key_id\", \"overlap\": \"3600s\"}" "$server" metering.v1.KeyService/RotateApiKey
