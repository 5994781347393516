#!/usr/bin/env bash
# Go stubs of proto/, generated into metering/v1 below the working directory with the protoc of grpcio-tools: arguments are
# its Python and a directory for the plug-ins.
set -euo pipefail
python=$1 tools=$2
proto=$(cd "$(dirname "$0")/../../proto" && pwd)
mkdir -p "$tools"
[ -x "$tools/protoc-gen-go" ] || GOBIN=$tools go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
[ -x "$tools/protoc-gen-go-grpc" ] || GOBIN=$tools go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
options=()
cd "$proto"
files=(metering/v1/*.proto)
for file in "${files[@]}"; do
  options+=("--go_opt=M$file=meterd.dev/clients/metering/v1;metering" "--go-grpc_opt=M$file=meterd.dev/clients/metering/v1;metering")
done
cd "$OLDPWD"
PATH=$tools:$PATH "$python" -m grpc_tools.protoc -I"$proto" --go_out=. --go-grpc_out=. --go_opt=module=meterd.dev/clients \
  --go-grpc_opt=module=meterd.dev/clients "${options[@]}" "${files[@]}"
