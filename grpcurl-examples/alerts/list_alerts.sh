#!/usr/bin/env bash
# Lists the unresolved critical alerts of a client, the newest first.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise_alert.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_ids": ["example-alerts"],
  "min_severity": "ALERT_SEVERITY_CRITICAL",
  "open_only": true
}' "$server" metering.v1.AlertService/ListAlerts
