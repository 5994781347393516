#!/usr/bin/env bash
# Overrides thresholds for a client. update_mask names the fields to change. A named field without a value is reset to
# the default.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}
"$(dirname "$0")/../clients/create_client.sh" > /dev/null

grpcurl -plaintext -d '{
  "policy": {"client_id": "example-berlin", "monthly_warning": "250", "monthly_critical": "500", "spike_enabled": false},
  "update_mask": {"paths": ["monthly_warning", "monthly_critical", "spike_enabled", "projection_factor"]}
}' "$server" metering.v1.AlertService/UpdateAlertPolicy
