#!/usr/bin/env bash
# Runs every example against $METERD_SERVER (127.0.0.1:50051 unless set), and checks that each RPC of the server has an
# example with a line in the index. Prints what each answered with --verbose, else only of those that failed.
set -euo pipefail
cd "$(dirname "$0")"
export METERD_SERVER=${METERD_SERVER:-127.0.0.1:50051}
verbose=${1:-}
passed=0 failed=0

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

without=()
services=$(grpcurl -plaintext "$METERD_SERVER" list | grep '^metering\.') || true
for service in $services; do
  for method in $(grpcurl -plaintext "$METERD_SERVER" list "$service"); do
    rpc="${method%.*}/${method##*.}"
    script=$(grep -lF "$rpc" */*.sh | head -n 1) || true
    if [ -z "$script" ]; then
      without+=("$rpc has no example")
    elif ! grep -qF "| \`${rpc##*/}\` |" README.md; then
      without+=("$rpc has no line in README.md")
    fi
  done
done
[ -n "$services" ] || without+=("no service was listed")
status=0
[ ${#without[@]} = 0 ] || status=1
report "every RPC has an example" "$status" "$(printf '%s\n' "${without[@]}")"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
