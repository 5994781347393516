#!/usr/bin/env bash
# Reads an alert by its id.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
alert_id=$("$(dirname "$0")/raise_alert.sh")

grpcurl -plaintext -d "{\"alert_id\": \"$alert_id\"}" "$server" metering.v1.AlertService/GetAlert
