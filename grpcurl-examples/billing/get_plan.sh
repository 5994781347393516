#!/usr/bin/env bash
# Reads one plan.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"plan_id": "starter"}' "$server" metering.v1.BillingService/GetPlan
