#!/usr/bin/env bash
# Lists the keys that are neither revoked nor expired.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"live_only": true, "page_size": 5}' "$server" metering.v1.KeyService/ListApiKeys
