#!/usr/bin/env bash
# Watches the health of the whole server for two seconds. A watch has no end of its own, so DEADLINE_EXCEEDED is right
# here: grpcurl exits with 64 plus the status code.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

status=0
grpcurl -plaintext -max-time 2 -d '{}' "$server" grpc.health.v1.Health/Watch || status=$?
[ "$status" = $((64 + 4)) ]
