#!/usr/bin/env bash
# Reads a client's usage of the current month by service, and the projected cost at the end of the month.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "demo"}' "$server" metering.v1.UsageService/GetCurrentMonthUsage
