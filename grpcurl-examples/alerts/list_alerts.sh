#!/usr/bin/env bash
# Lists the critical alerts of a client that nobody has resolved, the newest first.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_ids": ["example-alerts"],
  "min_severity": "ALERT_SEVERITY_CRITICAL",
  "open_only": true
}' "$server" metering.v1.AlertService/ListAlerts
