#!/usr/bin/env bash
# Shows the fees of a client for the current month. Each plan is charged for its days.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.BillingService/GetPlanFees
