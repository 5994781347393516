#!/usr/bin/env bash
# Lists the changes of a client's events.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/correct_usage.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "demo", "page_size": 2}' "$server" metering.v1.UsageService/ListAdjustments
