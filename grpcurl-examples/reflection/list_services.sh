#!/usr/bin/env bash
# Asks the server which services it has. Every example here works without a proto file because of this.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" list
