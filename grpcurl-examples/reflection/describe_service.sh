#!/usr/bin/env bash
# Shows the RPCs of a service, each with its manual.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" describe metering.v1.UsageService
