#!/usr/bin/env bash
# This is not an example; the other scripts in this directory run it first. Makes the client example-alerts reach its
# critical threshold, once per month, and prints the id of its newest alert. A payment of 4,000 USD costs 2.9 % plus
# 0.30: 116.30.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d "{\"event\": {\"client_id\": \"example-alerts\", \"service\": \"stripe\", \"amount\": \"4000\",
  \"idempotency_key\": \"example-alert-$(date -u +%Y-%m)\"}}" "$server" metering.v1.UsageService/TrackUsage > /dev/null
grpcurl -plaintext -d '{"client_ids": ["example-alerts"], "page_size": 1}' "$server" metering.v1.AlertService/ListAlerts |
  sed -n 's/.*"alertId": "\(.*\)".*/\1/p'
