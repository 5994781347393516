#!/usr/bin/env bash
# Creates a key that may record usage of one client. The token is returned only once.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"api_key": {"name": "example backend",
    "grants": [{"scope": "SCOPE_INGEST", "client_ids": ["acme"]}, {"scope": "SCOPE_READ", "client_ids": ["acme"]}]}}' \
  "$server" metering.v1.KeyService/CreateApiKey
