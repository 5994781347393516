#!/usr/bin/env bash
# Lists the latest changes by admins.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"page_size": 3}' "$server" metering.v1.KeyService/ListAuditLog
