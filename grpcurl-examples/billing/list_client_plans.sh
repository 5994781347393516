#!/usr/bin/env bash
# Lists the changes of the plan of a client, past and future.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.BillingService/ListClientPlans
