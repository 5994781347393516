#!/usr/bin/env bash
# Runs a scheduled job now and waits until it ends. Any replica may run it.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -max-time 60 -d '{"job": "monthly_summaries"}' "$server" metering.v1.JobService/RunJob
