#!/usr/bin/env bash
# Creates a plan. With a request_id, a repeated call returns the first result instead of PLAN_EXISTS.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "plan": {"plan_id": "example-team", "display_name": "Team", "monthly_fee": "49.00", "included_credits": "20.00"},
  "request_id": "example-create-plan"
}' "$server" metering.v1.BillingService/CreatePlan
