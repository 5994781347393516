#!/usr/bin/env bash
# Streams four events in one call. Each acknowledgement says up to which message all events are settled, and lists the
# events that were not simply accepted. Here this is the fourth event, which has the key of the third, and on a second
# run all events.
set -euo pipefail
server=${METERD_SERVER:-127.0.0.1:50051}

grpcurl -plaintext -d @ "$server" metering.v1.UsageService/StreamUsage <<'EVENTS'
{"event": {"client_id": "demo", "service": "email", "operation": "message", "units": "120", "idempotency_key": "example-stream-1"}}
{"event": {"client_id": "demo", "service": "whatsapp", "operation": "message", "units": "8", "idempotency_key": "example-stream-2"}}
{"event": {"client_id": "demo", "service": "google_places", "operation": "nearby_search", "idempotency_key": "example-stream-3"}}
{"event": {"client_id": "demo", "service": "google_places", "operation": "nearby_search", "idempotency_key": "example-stream-3"}}
EVENTS
