#!/usr/bin/env bash
# Acknowledges an alert and records who has seen it. A second run returns the same result and keeps the first name.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
alert_id=$("$(dirname "$0")/raise_alert.sh")

grpcurl -plaintext -d "{\"alert_id\": \"$alert_id\", \"acknowledged_by\": \"ann@example.com\"}" \
  "$server" metering.v1.AlertService/AcknowledgeAlert
