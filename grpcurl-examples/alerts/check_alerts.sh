#!/usr/bin/env bash
# Evaluates the alert rules of one client now. Without client_id, evaluates all clients with recent usage.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise_alert.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-alerts"}' "$server" metering.v1.AlertService/CheckAlerts
