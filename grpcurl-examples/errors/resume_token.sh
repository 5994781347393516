#!/usr/bin/env bash
# Continues a subscription with a token that this deployment did not issue. The error is INVALID_ARGUMENT with the
# reason RESUME_TOKEN_INVALID.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

status=0
grpcurl -plaintext -d '{"resume_token": "forged"}' "$server" metering.v1.AlertService/SubscribeAlerts 2>&1 || status=$?
[ "$status" = $((64 + 3)) ]
