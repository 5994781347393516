#!/usr/bin/env bash
# Shows what is left of the grants of a client that are valid today.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.BillingService/GetCreditBalance
