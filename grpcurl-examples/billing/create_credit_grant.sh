#!/usr/bin/env bash
# Grants credits to a client. With a request_id, a repeated call grants them only once.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "grant": {
    "client_id": "example-berlin",
    "amount": "25.00",
    "source": "CREDIT_SOURCE_PURCHASE",
    "note": "order 4711"
  },
  "request_id": "example-create-credit-grant"
}' "$server" metering.v1.BillingService/CreateCreditGrant
