#!/usr/bin/env bash
# Retries a failed notification. This one failed because its channel was removed; then the channel is added again.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise_alert.sh" > /dev/null
policy() { # field, value; without a value the field is reset to the default
  grpcurl -plaintext -d "{\"policy\": {\"client_id\": \"example-alerts\"${2:+, \"$1\": $2}}, \"update_mask\": {\"paths\": [\"$1\"]}}" \
    "$server" metering.v1.AlertService/UpdateAlertPolicy > /dev/null
}
channel='[{"kind": "NOTIFICATION_CHANNEL_KIND_WEBHOOK", "target": "https://alerts.example.invalid/meterd"}]'

policy channels "$channel"
# A higher threshold resolves the alert, and the old threshold raises it again.
policy monthly_critical '"100000"'
policy monthly_critical
policy channels
policy channels "$channel"
notification_id=$(grpcurl -plaintext -d '{"client_id": "example-alerts", "states": ["NOTIFICATION_STATE_FAILED"], "page_size": 1}' \
  "$server" metering.v1.AlertService/ListNotifications | sed -n 's/.*"notificationId": "\(.*\)".*/\1/p')

grpcurl -plaintext -d "{\"notification_id\": \"$notification_id\"}" "$server" metering.v1.AlertService/RetryNotification
policy channels
