#!/usr/bin/env bash
# Evaluates the rules of one client now. Without client_id: of all that have used something lately.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-alerts"}' "$server" metering.v1.AlertService/CheckAlerts
