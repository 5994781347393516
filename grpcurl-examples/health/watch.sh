#!/usr/bin/env bash
# Watches the health of the whole server for two seconds. A watch does not end by itself, so DEADLINE_EXCEEDED is
# expected: grpcurl exits with 64 plus the status code.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

status=0
grpcurl -plaintext -max-time 2 -d '{}' "$server" grpc.health.v1.Health/Watch || status=$?
[ "$status" = $((64 + 4)) ]
