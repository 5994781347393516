#!/usr/bin/env bash
# Reads the totals of the current month over all clients, and by service.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{}' "$server" metering.v1.UsageService/GetPlatformUsage
