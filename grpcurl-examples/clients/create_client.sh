#!/usr/bin/env bash
# Creates a client with its own time zone. With a request_id, a repeated call returns the first result instead of
# CLIENT_EXISTS.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{
  "client": {"client_id": "example-berlin", "display_name": "Beispiel GmbH", "time_zone": "Europe/Berlin"},
  "request_id": "example-create-client"
}' "$server" metering.v1.ClientService/CreateClient
