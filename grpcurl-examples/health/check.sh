#!/usr/bin/env bash
# Asks whether calls to a service are answered: NOT_SERVING while the database is away or the server is stopping.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"service": "metering.v1.UsageService"}' "$server" grpc.health.v1.Health/Check
