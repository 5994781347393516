#!/usr/bin/env bash
# Shows what a client has used in its current month, what credits have paid, and what is payable.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.BillingService/GetCurrentPeriod
