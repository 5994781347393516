#!/usr/bin/env bash
# Follows the alerts of a client for two seconds, from the oldest that is kept. A subscription has no end of its own, so
# DEADLINE_EXCEEDED is right here: grpcurl exits with 64 plus the status code. Without -max-time it goes on, and what
# happens is there at once; the last resume_token continues a stream that broke.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/raise.sh" > /dev/null

status=0
messages=$(grpcurl -plaintext -max-time 2 -d '{"client_ids": ["example-alerts"], "from_start": true}' \
  "$server" metering.v1.AlertService/SubscribeAlerts 2>&1) || status=$?
echo "$messages"
[ "$status" = $((64 + 4)) ]
grep -q '"change": "ALERT_CHANGE_RAISED"' <<< "$messages"
