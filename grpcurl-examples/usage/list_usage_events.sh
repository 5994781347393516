#!/usr/bin/env bash
# Lists the two newest chat completions of a client. To get the next two, send next_page_token of the response as
# page_token.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/track_usage.sh" > /dev/null

grpcurl -plaintext -d '{
  "client_id": "demo",
  "services": ["openai"],
  "operations": ["chat_completion"],
  "page_size": 2
}' "$server" metering.v1.UsageService/ListUsageEvents
