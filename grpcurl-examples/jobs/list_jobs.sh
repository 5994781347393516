#!/usr/bin/env bash
# Lists the scheduled jobs with their last run, its result, and the time of the next run.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" metering.v1.JobService/ListJobs
