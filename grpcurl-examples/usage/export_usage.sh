#!/usr/bin/env bash
# Exports a client's events as CSV, starting with a day in the client's time zone. In JSON, the bytes of each chunk are
# base64; decoded and concatenated they are the file. (`meterd export` writes the file directly.)
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "demo", "services": ["openai"], "start_date": "2026-01-01", "format": "EXPORT_FORMAT_CSV"}' \
  "$server" metering.v1.UsageService/ExportUsage |
  sed -n 's/.*"data": "\([^"]*\)".*/\1/p' | while read -r piece; do base64 -d <<< "$piece"; done
