"""The providers' stand-in: SendGrid's and Twilio's HTTP over TLS, strict, and unruly on demand.

It checks what the providers document as an error (required fields, limits, authentication), remembers what it
accepted, and posts signed webhooks back. `python -m tests.support.providers FOLDER` runs it as a process.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import trustme
import urllib3
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twilio.request_validator import RequestValidator

API_KEY = "SG.stand-in.key"
ACCOUNT, TOKEN, NUMBER = "AC" + "0" * 32, "token-of-the-stand-in", "+14155550100"
# What SendGrid keeps for itself: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors
_RESERVED = set(
    "x-sg-id x-sg-eid received dkim-signature content-transfer-encoding content-type to from subject reply-to"
    " cc bcc".split()
)


@dataclass(frozen=True)
class Taken:
    """A message that was accepted."""

    id: str
    to: str
    body: Mapping[str, Any]


@dataclass
class Misbehaviour:
    """What to do with the next message: answer `status` with `headers`, or hang, or accept and hang up."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    hang: float = 0.0
    hang_up_after_accepting: bool = False


@dataclass
class StandIn:
    """The providers, on one port. `unruly` says what happens to the next messages, one each."""

    url: str = ""
    ca: str = ""
    taken: list[Taken] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unruly: deque[Misbehaviour] = field(default_factory=deque)
    connections: int = 0
    scopes: tuple[str, ...] = ("mail.send",)
    account_status: str = "active"
    secret: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def webhook_key(self) -> bytes:
        """The public key in DER, as SendGrid shows it (there in base64)."""
        return self.secret.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sendgrid_headers(self, body: bytes, at: float | None = None) -> dict[str, str]:
        """What a signed batch carries."""
        stamp = str(int(time.time() if at is None else at))
        signature = self.secret.sign(stamp.encode() + body, ec.ECDSA(hashes.SHA256()))
        return {
            "Content-Type": "application/json",
            "X-Twilio-Email-Event-Webhook-Timestamp": stamp,
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
        }

    def twilio_headers(self, url: str, form: Mapping[str, str]) -> dict[str, str]:
        """What a signed form carries; `url` is what Twilio was told."""
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(url, dict(form)),
        }

    def post(self, to: str, public: str, form: Mapping[str, str]) -> int:
        """Posts a form to the server at `to`, signed for its `public` address; the status of the answer."""
        answer = urllib3.request(
            "POST", to, body=urlencode(form), headers=self.twilio_headers(public, form), retries=False
        )
        return answer.status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        self.request.settimeout(30)
        super().setup()
        with self.here.lock:
            self.here.connections += 1

    @property
    def here(self) -> StandIn:
        return self.server.here

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        if self.path == "/v3/scopes":
            if self._bearer():
                self._answer(200, {"scopes": list(self.here.scopes)})
        elif self.path == f"/2010-04-01/Accounts/{ACCOUNT}.json":
            if self._basic():
                self._answer(200, {"sid": ACCOUNT, "status": self.here.account_status})
        else:
            self._answer(404, {"errors": [{"message": "not found", "field": None}], "code": 20404})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v3/mail/send":
            self._mail(raw)
        elif self.path == f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json":
            self._text(raw)
        else:
            self._answer(404, {"code": 20404, "message": "not found", "status": 404})

    def _mail(self, raw: bytes) -> None:
        if not self._bearer():
            return
        if self.headers.get("Content-Type") != "application/json":
            self._answer(415, {"errors": [{"message": "Content-Type should be application/json."}]})
            return
        try:
            mail = json.loads(raw)
            wrong = list(_wrong_with_mail(mail))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = [("body", f"cannot be read: {error!r}")]
        if wrong:
            with self.here.lock:
                self.here.refused += [f"{name}: {what}" for name, what in wrong]
            self._answer(400, {"errors": [{"field": n, "message": w, "help": None} for n, w in wrong]})
            return
        taken = Taken(uuid.uuid4().hex[:22], mail["personalizations"][0]["to"][0]["email"], mail)
        self._take(taken, 202, None, {"X-Message-Id": taken.id})

    def _text(self, raw: bytes) -> None:
        if not self._basic():
            return
        form = dict(parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=True))
        code, what = _wrong_with_text(form)
        if code:
            with self.here.lock:
                self.here.refused.append(f"{code}: {what}")
            self._answer(400, {"code": code, "message": what, "status": 400, "more_info": ""})
            return
        taken = Taken("SM" + uuid.uuid4().hex, form["To"], form)
        self._take(taken, 201, {"sid": taken.id, "status": "queued", "to": form["To"]}, {})

    def _take(self, taken: Taken, status: int, body: Any, headers: Mapping[str, str]) -> None:
        with self.here.lock:
            unruly = self.here.unruly.popleft() if self.here.unruly else Misbehaviour()
            if not (unruly.status or unruly.hang):
                self.here.taken.append(taken)
        if unruly.hang:
            time.sleep(unruly.hang)
            self.close_connection = True
            return
        if unruly.status:
            self._answer(unruly.status, unruly.error or {"errors": []}, unruly.headers)
            return
        if unruly.hang_up_after_accepting:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, body, headers)

    def _bearer(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {API_KEY}":
            return True
        self._answer(401, {"errors": [{"message": "authorization required", "field": None}]})
        return False

    def _basic(self) -> bool:
        expected = base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {expected}":
            return True
        self._answer(401, {"code": 20003, "message": "Authenticate", "status": 401})
        return False

    def _answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        raw = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(raw)


def _wrong_with_mail(mail: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what) for everything SendGrid would refuse, and for what must not be sent to it."""
    people = mail["personalizations"]
    if not 1 <= len(people) <= 1000:
        yield "personalizations", "between 1 and 1000"
    addresses = [to["email"].casefold() for one in people for to in one["to"]]
    if len(addresses) != len(set(addresses)) or len(addresses) > 1000:
        yield "personalizations.to", "each address once, at most 1000"
    if any(address.count("@") != 1 for address in [*addresses, mail["from"]["email"]]):
        yield "personalizations.to.email", "does not contain a valid address"
    if not mail.get("subject", "").strip():
        yield "subject", "is required"
    kinds = [part["type"] for part in mail["content"]]
    if kinds not in (["text/plain"], ["text/plain", "text/html"]) or not all(
        p["value"] for p in mail["content"]
    ):
        yield "content", "text/plain first, then text/html, neither empty"
    reserved = {name.casefold() for name in mail.get("headers", {})} & _RESERVED
    if reserved:
        yield "headers", f"reserved: {sorted(reserved)}"
    arguments = mail.get("custom_args", {})
    if set(arguments) != {"delivery_id"} or len(json.dumps(arguments)) > 10_000:
        yield "custom_args", "our delivery's id and nothing else"
    if mail.get("categories"):
        yield "categories", "cannot be erased"
    tracking = mail.get("tracking_settings", {})
    for name in ("click_tracking", "open_tracking", "subscription_tracking"):
        if tracking.get(name, {}).get("enable") is not False:
            yield f"tracking_settings.{name}", "must be off"


def _wrong_with_text(form: Mapping[str, str]) -> tuple[int, str]:
    """Twilio's error code and words; 0 when all is fine."""
    if not form.get("To", "").startswith("+") or not form["To"][1:].isdigit():
        return 21211, f"The 'To' number {form.get('To')} is not a valid phone number."
    if form["To"].endswith("21610"):
        return 21610, "Attempt to send to unsubscribed recipient"
    if ("From" in form) == ("MessagingServiceSid" in form):
        return 21603, "A 'From' phone number is required."
    if form.get("From", NUMBER) != NUMBER:
        return 21212, "The 'From' number is not a valid phone number."
    if not form.get("Body"):
        return 21602, "Message body is required."
    if len(form["Body"]) > 1600:
        return 21617, "The concatenated message body exceeds the 1600 character limit."
    callback = form.get("StatusCallback", "")
    if callback and set(parse_qs(callback.partition("?")[2])) - {"delivery"}:
        return 21609, "The 'StatusCallback' URL has more in it than the delivery."
    return 0, ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, here: StandIn) -> None:
        self.here = here
        authority = trustme.CA()
        here.ca = authority.cert_pem.bytes().decode()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self.tls)
        super().__init__(("127.0.0.1", 0), _Handler)
        here.url = f"https://127.0.0.1:{self.server_address[1]}"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The handshake in the connection's own thread: one that dawdles stops nobody.
        try:
            request.settimeout(10)
            request = self.tls.wrap_socket(request, server_side=True)
        except OSError:
            self.shutdown_request(request)
            return
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """The providers, until the end of the block."""
    here = StandIn()
    server = _Server(here)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with stand_in() as running:
        folder = Path(sys.argv[1])
        (folder / "ca.pem").write_text(running.ca)
        (folder / "webhook-key").write_text(base64.b64encode(running.webhook_key).decode())
        (folder / "url").write_text(running.url)
        threading.Event().wait()
