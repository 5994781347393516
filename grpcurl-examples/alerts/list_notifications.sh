#!/usr/bin/env bash
# Lists failed notifications with the reason.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"states": ["NOTIFICATION_STATE_FAILED"], "page_size": 10}' \
  "$server" metering.v1.AlertService/ListNotifications
