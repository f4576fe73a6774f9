"""What Twilio's API of 2010-04-01 takes, and its webhooks, signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.providers.server import Reply, Request

NUMBER = re.compile(r"\+[1-9]\d{6,14}")
_FIELDS = frozenset({"To", "From", "MessagingServiceSid", "Body", "StatusCallback"})


class Twilio:
    """Takes texts and remembers them; knows its account and numbers."""

    def __init__(self) -> None:
        self.account, self.token = "AC" + "0" * 31 + "1", "stand-in-token"
        self.keys: dict[str, str] = {}
        self.number, self.service = "+14155550100", "MG" + "0" * 31 + "2"
        self.status = "active"
        self.stopped: set[str] = set()
        self.landlines: set[str] = set()
        self.texts: list[dict[str, str]] = []

    def handle(self, request: Request) -> Reply:
        who, _, secret = _basic(request)
        known = {self.account: self.token, **self.keys}
        if known.get(who) != secret:
            return _error(401, 20003, "Authenticate")
        base = f"/2010-04-01/Accounts/{self.account}"
        if request.method == "GET":
            return self._look_up(request, base)
        if (request.method, request.path) != ("POST", f"{base}/Messages.json"):
            return _error(404, 20404, f"The requested resource {request.path} was not found")
        if request.headers.get("content-type") != "application/x-www-form-urlencoded":
            return _error(415, 20001, "Unsupported content type")
        return self._take(parse_qs(request.body.decode(), keep_blank_values=True))

    def _look_up(self, request: Request, base: str) -> Reply:
        if request.path == f"{base}.json":
            return _json(200, {"sid": self.account, "status": self.status, "type": "Full"})
        if request.path == f"{base}/IncomingPhoneNumbers.json":
            asked = request.query.get("PhoneNumber")
            found = [{"sid": "PN1", "phone_number": self.number}] if asked in (None, self.number) else []
            return _json(200, {"incoming_phone_numbers": found, "page": 0, "page_size": 1})
        if request.path == f"/v1/Services/{self.service}":
            return _json(200, {"sid": self.service, "account_sid": self.account})
        return _error(404, 20404, f"The requested resource {request.path} was not found")

    def _take(self, form: Mapping[str, Sequence[str]]) -> Reply:
        given = {name: values[0] for name, values in form.items()}
        if set(given) - _FIELDS or any(len(values) > 1 for values in form.values()):
            return _error(400, 20001, f"unexpected parameters {sorted(set(given) - _FIELDS)}")
        if bool(given.get("From")) == bool(given.get("MessagingServiceSid")):
            return _error(400, 21603, "A 'From' phone number is required")
        if given.get("From", self.number) != self.number:
            return _error(400, 21606, "The From phone number is not a valid message-capable number")
        if given.get("MessagingServiceSid", self.service) != self.service:
            return _error(404, 21701, "The Messaging Service does not exist")
        to, body = given.get("To", ""), given.get("Body", "")
        if not NUMBER.fullmatch(to):
            return _error(400, 21211, f"The 'To' number {to} is not a valid phone number.")
        if to in self.landlines:
            return _error(400, 21614, f"'To' number is not a valid mobile number: {to}")
        if to in self.stopped:
            return _error(400, 21610, "Attempt to send to unsubscribed recipient")
        if not body:
            return _error(400, 21602, "Message body is required")
        if len(body) > 1600:
            return _error(400, 21617, "The concatenated message body exceeds the 1600 character limit")
        callback = urlsplit(given.get("StatusCallback", ""))
        if callback.scheme not in ("http", "https") or set(parse_qs(callback.query)) - {"delivery_id"}:
            return _error(400, 21609, "The StatusCallback URL is not a valid URL")
        sid = "SM" + uuid.uuid4().hex
        self.texts.append({**given, "sid": sid})
        return _json(
            201,
            {
                "sid": sid, "account_sid": self.account, "to": to, "from": given.get("From"), "body": body,
                "status": "queued", "num_segments": "1", "error_code": None, "error_message": None,
                "messaging_service_sid": given.get("MessagingServiceSid"), "direction": "outbound-api",
                "date_created": "Tue, 03 Mar 2026 10:00:00 +0000", "date_sent": None, "price": None,
                "date_updated": "Tue, 03 Mar 2026 10:00:00 +0000", "api_version": "2010-04-01",
                "uri": f"/2010-04-01/Accounts/{self.account}/Messages/{sid}.json", "subresource_uris": {},
            },
        )  # fmt: skip

    def delivery_ids(self) -> list[str]:
        """The deliveries of all texts taken, in order, each as often as it was taken."""
        return [parse_qs(urlsplit(text["StatusCallback"]).query)["delivery_id"][0] for text in self.texts]

    def inbound(self, sender: str, body: str, **more: str) -> dict[str, str]:
        """The parameters of a customer's text."""
        sid = "SM" + uuid.uuid4().hex
        return {
            "MessageSid": sid, "SmsSid": sid, "SmsMessageSid": sid, "AccountSid": self.account,
            "From": sender, "To": self.number, "Body": body, "NumMedia": "0", "NumSegments": "1",
            "ApiVersion": "2010-04-01", "SmsStatus": "received", **more,
        }  # fmt: skip

    def report(self, sid: str, status: str, **more: str) -> dict[str, str]:
        """The parameters of a status callback."""
        return {
            "MessageSid": sid, "SmsSid": sid, "AccountSid": self.account, "MessageStatus": status,
            "SmsStatus": status, "To": "+4930123456", "From": self.number, "ApiVersion": "2010-04-01", **more,
        }  # fmt: skip

    def signature(self, url: str, form: Sequence[tuple[str, str]]) -> str:
        """HMAC-SHA1 over the address and the sorted parameters; written anew here, not taken from the SDK."""
        said = url + "".join(f"{name}{value}" for name, value in sorted(set(form)))
        return base64.b64encode(hmac.new(self.token.encode(), said.encode(), hashlib.sha1).digest()).decode()

    def signed(self, url: str, params: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        """The raw form and its headers."""
        pairs = list(params.items())
        return urlencode(pairs).encode(), {
            "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
            "X-Twilio-Signature": self.signature(url, pairs),
        }


def _basic(request: Request) -> tuple[str, str, str]:
    given = request.headers.get("authorization", "").removeprefix("Basic ")
    try:
        return base64.b64decode(given).decode().partition(":")
    except ValueError:
        return "", "", ""


def _json(status: int, body: Any) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def _error(status: int, code: int, message: str) -> Reply:
    info = f"https://www.twilio.com/docs/errors/{code}"
    return _json(status, {"code": code, "message": message, "more_info": info, "status": status})
