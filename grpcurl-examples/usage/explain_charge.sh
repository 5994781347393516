#!/usr/bin/env bash
# Shows where the charge of a corrected event comes from: the price, each rate, and the correction.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
event_id=$("$(dirname "$0")/correct_usage.sh" | sed -n 's/.*"eventId": "\([^"]*\)".*/\1/p')

grpcurl -plaintext -d '{"client_id": "demo", "event_id": "'"$event_id"'"}' "$server" metering.v1.UsageService/ExplainCharge
