#!/usr/bin/env bash
# Notes who has seen an alert. Run again, the answer is the same: the first one stays.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
alert_id=$("$(dirname "$0")/raise.sh")

grpcurl -plaintext -d "{\"alert_id\": \"$alert_id\", \"acknowledged_by\": \"ann@example.com\"}" \
  "$server" metering.v1.AlertService/AcknowledgeAlert
