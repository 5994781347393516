#!/usr/bin/env bash
# Lists the scheduled jobs: when each ran last, what it did, and when it is due next.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" metering.v1.JobService/ListJobs
