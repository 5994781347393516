#!/usr/bin/env bash
# Asks whether a client may send a text message: the limits that count it, how much is left, and which limit binds.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_limit.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-berlin", "service": "twilio_sms"}' \
  "$server" metering.v1.BillingService/CheckLimit | grep -B 1 -A 40 '"allowed": true'
