#!/usr/bin/env bash
# Lists the aliases of models.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" metering.v1.CatalogService/ListModelAliases
