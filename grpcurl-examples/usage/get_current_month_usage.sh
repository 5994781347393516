#!/usr/bin/env bash
# Reads a client's month so far, by service, and where it ends if it goes on like this.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "demo"}' "$server" metering.v1.UsageService/GetCurrentMonthUsage
