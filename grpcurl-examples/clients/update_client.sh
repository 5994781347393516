#!/usr/bin/env bash
# Changes a client's name. update_mask names the fields to change, so the time zone is unchanged. (grpcurl expects the
# mask as a message with paths; other JSON tools expect a string, "displayName".)
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/create_client.sh" > /dev/null

grpcurl -plaintext -d '{
  "client": {"client_id": "example-berlin", "display_name": "Beispiel AG"},
  "update_mask": {"paths": ["display_name"]}
}' "$server" metering.v1.ClientService/UpdateClient
