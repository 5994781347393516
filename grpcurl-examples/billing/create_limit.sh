#!/usr/bin/env bash
# Creates a hard limit of text messages in a month, with alerts at 50, 80 and 100 percent. With a request_id, a repeated
# call returns the first result instead of LIMIT_EXISTS.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/../clients/create_client.sh" > /dev/null

grpcurl -plaintext -d '{
  "limit": {
    "client_id": "example-berlin",
    "limit_id": "messages",
    "filter": {"services": ["twilio_sms"]},
    "measure": "LIMIT_MEASURE_UNITS",
    "period": "LIMIT_PERIOD_MONTH",
    "amount": "1000",
    "hard": true,
    "alert_percents": [50, 80, 100]
  },
  "request_id": "example-create-limit"
}' "$server" metering.v1.BillingService/CreateLimit
