#!/usr/bin/env bash
# Forecasts a client's current month: the cost at the end of the month and of each day, and the days on which thresholds are reached.
# The client needs usage on earlier days for a forecast that is better than the projection, and on 7 of them for a range.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
for days_ago in 10 9 8 7 6 5 4 3 2 1; do
  time=$(date -u -d "$days_ago days ago" +%Y-%m-%dT12:00:00Z 2> /dev/null || date -u -v "-${days_ago}d" +%Y-%m-%dT12:00:00Z)
  grpcurl -plaintext -d '{"event": {"client_id": "demo", "service": "sms", "units": "40", "event_time": "'"$time"'",
    "idempotency_key": "forecast-'"${time%T*}"'"}}' "$server" metering.v1.UsageService/TrackUsage > /dev/null
done

grpcurl -plaintext -d '{"client_id": "demo"}' "$server" metering.v1.UsageService/GetForecast
