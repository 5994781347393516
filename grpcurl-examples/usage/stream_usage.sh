#!/usr/bin/env bash
# Streams four events over one call. Acknowledgements say up to which message everything is settled, and list what is not
# plainly accepted: here the fourth event, which repeats the third one's key, and on a second run all of them.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d @ "$server" metering.v1.UsageService/StreamUsage <<'EVENTS'
{"event": {"client_id": "demo", "service": "email", "operation": "message", "units": "120", "idempotency_key": "example-stream-1"}}
{"event": {"client_id": "demo", "service": "whatsapp", "operation": "message", "units": "8", "idempotency_key": "example-stream-2"}}
{"event": {"client_id": "demo", "service": "google_places", "operation": "nearby_search", "idempotency_key": "example-stream-3"}}
{"event": {"client_id": "demo", "service": "google_places", "operation": "nearby_search", "idempotency_key": "example-stream-3"}}
EVENTS
