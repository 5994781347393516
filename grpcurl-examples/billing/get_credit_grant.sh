#!/usr/bin/env bash
# Reads the oldest grant of a client, and what it has paid of each month.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grant_id=$(grpcurl -plaintext -d '{"client_id": "example-berlin", "page_size": 1}' "$server" \
  metering.v1.BillingService/ListCreditGrants | sed -n 's/.*"grantId": "\(.*\)".*/\1/p')
grpcurl -plaintext -d "{\"client_id\": \"example-berlin\", \"grant_id\": \"$grant_id\"}" \
  "$server" metering.v1.BillingService/GetCreditGrant
