#!/usr/bin/env bash
# Subscribes to the alerts of a client for two seconds, starting with the oldest stored change. A subscription does not
# end by itself, so DEADLINE_EXCEEDED is expected: grpcurl exits with 64 plus the status code. Without -max-time the
# stream stays open and sends each change immediately. To continue a broken stream, send its last resume_token.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise_alert.sh" > /dev/null

status=0
messages=$(grpcurl -plaintext -max-time 2 -d '{"client_ids": ["example-alerts"], "from_start": true}' \
  "$server" metering.v1.AlertService/SubscribeAlerts 2>&1) || status=$?
echo "$messages"
[ "$status" = $((64 + 4)) ]
grep -q '"change": "ALERT_CHANGE_RAISED"' <<< "$messages"
