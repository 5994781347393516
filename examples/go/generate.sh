#!/bin/sh
# Generates the Go stubs in gen/go. Needs protoc, protoc-gen-go and protoc-gen-go-grpc on the PATH.
set -eu
cd "$(dirname "$0")"
${PROTOC:-protoc} -I ../../proto --go_out=. --go_opt=module=github.com/meterd/meterd \
  --go-grpc_out=. --go-grpc_opt=module=github.com/meterd/meterd ../../proto/metering/v1/*.proto
