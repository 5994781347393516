#!/usr/bin/env bash
# Reads the default policy, which applies to every client without overrides.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d '{}' "$server" metering.v1.AlertService/GetAlertPolicy
