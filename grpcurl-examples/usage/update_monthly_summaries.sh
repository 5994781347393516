#!/usr/bin/env bash
# Refreshes the summaries of all months that changed since they were computed. A job does the same within a minute.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{}' "$server" metering.v1.UsageService/UpdateMonthlySummaries
