#!/usr/bin/env bash
# Tries a notification again that was given up: here because its channel was removed, and is there again.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise.sh" > /dev/null
policy() { # field to change, and its value; without one it goes back to the default
  grpcurl -plaintext -d "{\"policy\": {\"client_id\": \"example-alerts\"${2:+, \"$1\": $2}}, \"update_mask\": {\"paths\": [\"$1\"]}}" \
    "$server" metering.v1.AlertService/UpdateAlertPolicy > /dev/null
}
channel='[{"kind": "NOTIFICATION_CHANNEL_KIND_WEBHOOK", "target": "https://alerts.example.invalid/meterd"}]'

policy channels "$channel"
# The alert is resolved by a higher line, and raised again by the old one.
policy monthly_critical '"100000"'
policy monthly_critical
policy channels
policy channels "$channel"
notification_id=$(grpcurl -plaintext -d '{"client_id": "example-alerts", "states": ["NOTIFICATION_STATE_FAILED"], "page_size": 1}' \
  "$server" metering.v1.AlertService/ListNotifications | sed -n 's/.*"notificationId": "\(.*\)".*/\1/p')

grpcurl -plaintext -d "{\"notification_id\": \"$notification_id\"}" "$server" metering.v1.AlertService/RetryNotification
policy channels
