#!/usr/bin/env bash
# Lists the services of the server. All examples here work without proto files because the server supports reflection.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" list
