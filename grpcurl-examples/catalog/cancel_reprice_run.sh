#!/usr/bin/env bash
# Ends a run. A run that has ended already stays as it is.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
run_id=$("$(dirname "$0")/reprice_usage.sh" | sed -n 's/.*"runId": "\([^"]*\)".*/\1/p')

grpcurl -plaintext -d '{"run_id": "'"$run_id"'"}' "$server" metering.v1.CatalogService/CancelRepriceRun
