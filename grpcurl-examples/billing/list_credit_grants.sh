#!/usr/bin/env bash
# Lists the grants of a client, also those that are used up, expired or voided.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.BillingService/ListCreditGrants
