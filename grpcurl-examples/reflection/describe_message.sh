#!/usr/bin/env bash
# Shows the fields of a message with their units, limits and defaults, and a JSON template.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -msg-template "$server" describe metering.v1.TrackUsageRequest
grpcurl -plaintext "$server" describe metering.v1.UsageEvent
