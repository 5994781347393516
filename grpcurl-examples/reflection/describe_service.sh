#!/usr/bin/env bash
# Shows the RPCs of a service with their documentation.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" describe metering.v1.UsageService
