# Sourced by the steps: prints headings and times, counts tests, installs tools, starts a temporary server. A step is
# `.ci/<name>` and can be run alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=never
# Settings in a developer's shell must not affect the servers of CI.
unset DATABASE_URL "${!METERD_@}"

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/ci"
target=$(cd "$target" && pwd)
tools=$target/ci
step=$(basename "$0")
started=$SECONDS
server_pid=
server_data=
echo "== $step"

finish() {
  local status=$?
  stop_server
  if declare -F clean_up > /dev/null; then clean_up; fi
  echo "== $step: $((SECONDS - started)) s$([ "$status" = 0 ] || echo ", FAILED")"
}
trap finish EXIT

# Adds passed, failed and skipped tests to the total of .ci/run.
count() {
  if [ -n "${CI_COUNTS:-}" ]; then echo "$1 $2 $3" >> "$CI_COUNTS"; fi
}

# Installs packages of the distribution. Needs root.
apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "${apt_updated:-}" ]; then
    apt-get update -qq
    apt_updated=1
  fi
  apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

# Prints the directory of the programs of the newest PostgreSQL, version 15 or newer.
postgres_bin_dir() {
  local dir major best='' best_major=14
  for dir in "$(pg_config --bindir 2> /dev/null || true)" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin; do
    [ -x "$dir/initdb" ] && [ -x "$dir/psql" ] || continue
    major=$("$dir/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
    if [ "$major" -gt "$best_major" ]; then
      best=$dir best_major=$major
    fi
  done
  [ -n "$best" ] && echo "$best"
}

# Installs PostgreSQL 15 or newer if it is missing, without the cluster that the packages would create and start.
need_postgres() {
  if postgres_bin_dir > /dev/null; then return; fi
  echo "no PostgreSQL 15 or newer found: installing the package of the distribution"
  apt_install postgresql-common
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/no-main-cluster.conf
  apt_install postgresql
  postgres_bin_dir > /dev/null || { echo "the distribution has no PostgreSQL 15 or newer" >&2; return 1; }
}

# Adds a pinned version of grpcurl to the PATH.
grpcurl_version=v1.9.4
need_grpcurl() {
  export PATH="$tools/bin:$PATH"
  if [ ! -x "$tools/bin/grpcurl" ]; then
    echo "installing grpcurl $grpcurl_version"
    GOBIN="$tools/bin" go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" 2> "$tools/grpcurl.log" ||
      { cat "$tools/grpcurl.log" >&2; return 1; }
  fi
}

# Sets `python` to a Python with the packages of the Python clients.
need_python_clients() {
  python=$tools/venv/bin/python
  if [ ! -x "$python" ]; then
    python3 -m venv "$tools/venv" || { apt_install python3-venv && python3 -m venv "$tools/venv"; }
  fi
  "$python" -m pip install --quiet --disable-pip-version-check -r .ci/clients/requirements.txt
}

# Builds meterd and starts it on free ports with the given flags. Uses an empty data directory unless $server_data is
# set. Sets METERD_SERVER.
start_server() {
  need_postgres
  cargo build --locked --quiet
  server_data=${server_data:-$(mktemp -d)}
  local listen=()
  [[ " $* " == *" --listen "* ]] || listen=(--listen 127.0.0.1:0)
  "$target/debug/meterd" serve "${listen[@]}" --http-listen 127.0.0.1:0 --data-dir "$server_data" --log warn "$@" \
    > "$tools/server.out" 2> "$tools/server.err" &
  server_pid=$!
  for _ in $(seq 600); do
    METERD_SERVER=$(sed -n 's/^ *gRPC *\([^ ]*\).*/\1/p' "$tools/server.out")
    if [ -n "$METERD_SERVER" ]; then
      export METERD_SERVER METERD_DATA_DIR="$server_data"
      return
    fi
    kill -0 "$server_pid" 2> /dev/null || break
    sleep 0.1
  done
  echo "the server did not start:" >&2
  cat "$tools/server.err" >&2
  return 1
}

# Stops the server and its PostgreSQL as Ctrl-C does.
stop_server() {
  if [ -n "$server_pid" ]; then
    kill -INT "$server_pid" 2> /dev/null || true
    wait "$server_pid" || true
    rm -rf "$server_data"
    server_pid=
    server_data=
  fi
}
