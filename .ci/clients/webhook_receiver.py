"""Shows how a Python backend receives meterd's webhooks: over TLS, verified with the PyPI library `standardwebhooks`, also
while the key is changed. Modified webhooks must be rejected.

The server is $METERD_SERVER. The argument is a directory with cert.pem and key.pem for localhost.
"""

import http.server
import json
import os
import queue
import ssl
import sys
import tempfile
import threading
import uuid

import grpc
from generate import generate
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

TIMEOUT = 20
received = queue.Queue()


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        received.put((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def verifies(secret: str, headers: dict, body: bytes) -> bool:
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False


def main() -> None:
    certificates = sys.argv[1]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificates}/cert.pem", f"{certificates}/key.pem")
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    target = f"https://localhost:{receiver.server_port}/alerts"

    with tempfile.TemporaryDirectory() as out:
        generate(out)
        sys.path.insert(0, out)
        from google.protobuf.field_mask_pb2 import FieldMask
        from metering.v1 import alert_service_pb2 as alert
        from metering.v1 import alert_service_pb2_grpc as alert_grpc
        from metering.v1 import usage_service_pb2 as usage
        from metering.v1 import usage_service_pb2_grpc as usage_grpc

        with grpc.insecure_channel(os.environ["METERD_SERVER"]) as channel:
            alerts, service = alert_grpc.AlertServiceStub(channel), usage_grpc.UsageServiceStub(channel)

            def set_channel(secrets: list) -> list:
                hook = alert.NotificationChannel(
                    kind=alert.NOTIFICATION_CHANNEL_KIND_WEBHOOK, target=target, secrets=secrets
                )
                request = alert.UpdateAlertPolicyRequest(
                    policy=alert.AlertPolicy(channels=[hook]), update_mask=FieldMask(paths=["channels"])
                )
                return list(alerts.UpdateAlertPolicy(request, timeout=10).policy.channels[0].secrets)

            def reach_threshold() -> tuple:
                """Reaches the critical threshold of a new client: 20,000 × 0.0075 USD."""
                client_id = f"python-{uuid.uuid4()}"
                event = usage.UsageEvent(client_id=client_id, service="sms", units="20000")
                service.TrackUsage(usage.TrackUsageRequest(event=event), timeout=10)
                headers, body = received.get(timeout=TIMEOUT)
                message = json.loads(body)
                assert message["type"] == "alert.raised", message
                assert message["data"]["clientId"] == client_id, message
                assert message["data"]["severity"] == "ALERT_SEVERITY_CRITICAL", message
                assert message["data"]["current"] == "150", message
                return headers, body

            (old,) = set_channel([])
            headers, body = reach_threshold()
            assert verifies(old, headers, body)
            assert not verifies(old, headers, body.replace(b'"150"', b'"151"')), "a modified body was accepted"
            other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            assert not verifies(other, headers, body), "another key was accepted"
            late = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}
            assert not verifies(old, late, body), "another time was accepted"

            assert set_channel([other, old]) == [], "keys that the caller set are returned"
            headers, body = reach_threshold()
            assert verifies(old, headers, body) and verifies(other, headers, body)

            set_channel([other])
            headers, body = reach_threshold()
            assert verifies(other, headers, body) and not verifies(old, headers, body)
    print("webhooks verified with one key, with two keys and with a new key; modified webhooks rejected")


main()
