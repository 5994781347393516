#!/usr/bin/env bash
# Reads a client.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_client.sh" > /dev/null

grpcurl -plaintext -d '{"client_id": "example-berlin"}' "$server" metering.v1.ClientService/GetClient
