#!/usr/bin/env bash
# Checks whether a service can answer calls. The status is NOT_SERVING while the database is unavailable or the server
# is stopping.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"service": "metering.v1.UsageService"}' "$server" grpc.health.v1.Health/Check
