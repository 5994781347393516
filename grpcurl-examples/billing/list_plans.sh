#!/usr/bin/env bash
# Lists plans, ten per page.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"page_size": 10}' "$server" metering.v1.BillingService/ListPlans
