#!/bin/sh
# Generates the Python stubs in this directory. Needs `pip install -r requirements.txt`.
set -eu
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. ../../proto/metering/v1/*.proto
