#!/usr/bin/env bash
# Reads the default policy: what holds for every client that overrides nothing.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{}' "$server" metering.v1.AlertService/GetAlertPolicy
