#!/usr/bin/env bash
# Sends a test notification to every channel of a client and shows the results. The receiver does not exist, so the
# result is FAILED with the reason.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise_alert.sh" > /dev/null
channels() { # the new ones
  grpcurl -plaintext -d "{\"policy\": {\"client_id\": \"example-alerts\", \"channels\": $1}, \"update_mask\": {\"paths\": [\"channels\"]}}" \
    "$server" metering.v1.AlertService/UpdateAlertPolicy > /dev/null
}

channels '[{"kind": "NOTIFICATION_CHANNEL_KIND_WEBHOOK", "target": "https://alerts.example.invalid/meterd"}]'
grpcurl -plaintext -d '{"client_id": "example-alerts"}' "$server" metering.v1.AlertService/SendTestNotification
channels '[]'
