#!/usr/bin/env bash
# Reads the current month of a client that does not exist. The error is NOT_FOUND.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

status=0
grpcurl -plaintext -d '{"client_id": "no-such-client"}' \
  "$server" metering.v1.UsageService/GetCurrentMonthUsage 2>&1 || status=$?
[ "$status" = $((64 + 5)) ]
