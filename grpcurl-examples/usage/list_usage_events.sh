#!/usr/bin/env bash
# Lists the two newest chat completions of a client. next_page_token of the answer, sent as page_token, gives the next two.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_id": "demo",
  "services": ["openai"],
  "operations": ["chat_completion"],
  "page_size": 2
}' "$server" metering.v1.UsageService/ListUsageEvents
