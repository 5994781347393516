#!/usr/bin/env bash
# Runs every example against $METERD_SERVER (127.0.0.1:50051 unless set), and checks that each RPC of the server has an
# example and a line in README.md. Prints the output of failed examples, and with --verbose of all examples.
#
# The examples record usage that cannot be deleted. Therefore the script rejects a database that already has clients,
# unless --force is given. At the end it revokes the API keys of this run, and resets the alert policies and channels of
# the example clients.
set -euo pipefail
cd "$(dirname "$0")"
export METERD_SERVER=${METERD_SERVER:-127.0.0.1:50051}
verbose='' force=''
for argument in "$@"; do
  case $argument in
    --verbose) verbose=$argument ;;
    --force) force=$argument ;;
    *) echo "usage: $0 [--verbose] [--force]" >&2; exit 2 ;;
  esac
done
passed=0 failed=0

call() { # method, request
  grpcurl -plaintext -d "$2" "$METERD_SERVER" "metering.v1.$1"
}

clients=$(call ClientService/ListClients '{"page_size": 1}' | sed -n 's/.*"clientId": "\(.*\)".*/\1/p')
if [ -n "$clients" ] && [ -z "$force" ]; then
  echo "$METERD_SERVER already has data (client \"$clients\"), and the examples record usage that cannot be deleted." >&2
  echo "Use an empty database, for example: meterd serve --data-dir \$(mktemp -d). Or pass --force." >&2
  exit 1
fi

live_keys() {
  call KeyService/ListApiKeys '{"live_only": true, "page_size": 1000}' | sed -n 's/.*"keyId": "\(.*\)".*/\1/p' | sort
}
keys_before=$(live_keys)

clean_up() {
  local key_id client_id paths
  for key_id in $(comm -13 <(echo "$keys_before") <(live_keys)); do
    call KeyService/RevokeApiKey "{\"key_id\": \"$key_id\"}" > /dev/null || echo "key $key_id was not revoked" >&2
  done
  # A field that the mask names without a value is reset to the default.
  paths='["threshold_enabled", "monthly_warning", "monthly_critical", "spike_enabled", "spike_warning_percent",
    "spike_critical_percent", "spike_baseline_min", "projection_enabled", "projection_factor", "projection_first_day",
    "anomaly_enabled", "anomaly_factor", "anomaly_cost_min", "anomaly_units_min", "unpriced_enabled", "unpriced_events_min",
    "silence_enabled", "silence_hours", "channels"]'
  for client_id in example-berlin example-alerts; do
    call AlertService/UpdateAlertPolicy \
      "{\"policy\": {\"client_id\": \"$client_id\"}, \"update_mask\": {\"paths\": $paths}}" > /dev/null ||
      echo "the alert policy of $client_id was not reset" >&2
  done
  echo "Remaining data: the clients demo, example-berlin and example-alerts with their events and alerts; the service example_ocr"
  echo "with its price; the plan example-team; grants of credits and the limit messages of example-berlin; the model alias example-house-chat. The keys were revoked, and alert policies and channels were reset."
}
trap clean_up EXIT

report() { # name, exit status, output
  if [ "$2" = 0 ]; then
    passed=$((passed + 1))
    echo "ok      $1"
  else
    failed=$((failed + 1))
    echo "FAILED  $1 (exit status $2)"
  fi
  if [ -n "$3" ] && { [ "$2" != 0 ] || [ "$verbose" = --verbose ]; }; then
    sed 's/^/        /' <<< "$3"
  fi
}

for script in */*.sh; do
  status=0
  output=$("./$script" 2>&1) || status=$?
  report "$script" "$status" "$output"
done

missing=()
services=$(grpcurl -plaintext "$METERD_SERVER" list | grep '^metering\.') || true
for service in $services; do
  for method in $(grpcurl -plaintext "$METERD_SERVER" list "$service"); do
    rpc="${method%.*}/${method##*.}"
    script=$(grep -lF "$rpc" */*.sh | head -n 1) || true
    if [ -z "$script" ]; then
      missing+=("$rpc has no example")
    elif ! grep -qF "| \`${rpc##*/}\` |" README.md; then
      missing+=("$rpc has no line in README.md")
    fi
  done
done
[ -n "$services" ] || missing+=("no service was listed")
status=0
[ ${#missing[@]} = 0 ] || status=1
report "every RPC has an example" "$status" "$(printf '%s\n' "${missing[@]}")"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
