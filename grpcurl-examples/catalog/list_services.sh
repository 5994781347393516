#!/usr/bin/env bash
# Lists all services that can be metered.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" metering.v1.CatalogService/ListServices
