"""Twilio: texts handed over through its SDK on our own pool, and its webhooks checked by their signature."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from shared.channels import OPTED_OUT, Message, RefusesUsError, TransportError, UncertainError
from shared.channels.http import Answer, OfThread, call, retry_after
from shared.errors import Unauthenticated
from shared.provider_settings import Twilio
from shared.settings import Settings

if TYPE_CHECKING:
    from twilio.rest import Client

NAME = "Twilio"
SIGNATURE_HEADER = "X-Twilio-Signature"
MESSAGE_PATH, STATUS_PATH = "/webhooks/twilio/message", "/webhooks/twilio/status"
# In the query of the status callback: the delivery's id, which says nothing about anybody.
ARGUMENT = "delivery_id"

# https://www.twilio.com/docs/api/errors, by whose fault it is. Everything else with a 4xx is the message's.
STOPPED, _UNKNOWN = 21610, 20404
_WAIT = frozenset({14107, 20429, 21611, 30001, 63038})  # rates, and queues that are full
_OURS = frozenset(
    # Authentication, the account, the sender, the messaging service, the callback's address.
    {10001, 20003, 20005, 20006, 20008, 20404, 21212, 21603, 21606, 21609, 21659, 21660, 21701}
    | {21703, 21704, 21705, 21712, 30002}
)
# No text will ever arrive at this number: unknown, a landline, not a mobile.
DEAD = frozenset({21211, 21217, 21614, 30005, 30006})


def transport(settings: Settings) -> TwilioTransport:
    """The way to Twilio, for texts."""
    return TwilioTransport(settings)


class TwilioTransport:
    """Sends with the SDK's client, one a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.us = _chosen(settings)

    def send(self, message: Message) -> str:
        """Hands a text over; returns Twilio's SID for it."""
        client = _client(self.us, self.settings.extra_ca)
        sender = (
            {"from_": self.us.sender} if self.us.sender else {"messaging_service_sid": self.us.service_sid}
        )
        query = urlencode({ARGUMENT: message.delivery_id})
        made = _asking(
            client,
            lambda: client.messages.create(
                to=message.to,
                body=message.text,
                status_callback=f"{self.settings.public_url}{STATUS_PATH}?{query}",
                **sender,
            ),
        )
        if not made.sid:
            raise UncertainError("Twilio's answer cannot be read.")
        return str(made.sid)


def verdict(answer: Answer, code: int | None, now: float) -> TransportError:
    """What a call that did not end well means. `code` is Twilio's own, when its answer has one."""
    status = answer.status
    if status == 429 or code in _WAIT or status == 408:
        return TransportError(
            f"Twilio asks to wait ({code or status}).",
            permanent=False,
            retry_after=retry_after(answer.headers, now),
        )
    if status in (401, 403) and code not in (STOPPED, *DEAD):
        return RefusesUsError(
            f"Twilio does not accept our login ({code or status}): look at TWILIO_ACCOUNT_SID and"
            " TWILIO_AUTH_TOKEN, or TWILIO_API_KEY and TWILIO_API_SECRET."
        )
    if code in _OURS or 300 <= status < 400 or status in (404, 405):
        said = f"error {code}, see twilio.com/docs/api/errors/{code}" if code else f"status {status}"
        return RefusesUsError(f"Twilio takes no text from us as we are set up ({said}).")
    if code == STOPPED:
        return TransportError(OPTED_OUT, permanent=True)
    if 400 <= status < 500:
        return TransportError(f"Twilio refused the text (error {code or status}).", permanent=True)
    if status == 503 and (seconds := retry_after(answer.headers, now)):  # as with SendGrid
        return TransportError("Twilio asks to wait.", permanent=False, retry_after=seconds)
    return UncertainError(f"Twilio answered {status}.")


def check(settings: Settings) -> str:
    """Looks the account and its sender up; returns what is fine. Raises `RefusesUsError` when texts could
    not be sent or webhooks not be trusted, another `TransportError` when nobody can tell.
    """
    us = _chosen(settings)
    # With the token, whatever texts are sent with: it signs the webhooks, and most API keys may not ask this.
    owner = _make(replace(us, key_sid="", key_secret=""), settings.extra_ca)
    account = _asking(owner, lambda: owner.api.accounts(us.account_sid).fetch())
    if account.status in ("suspended", "closed"):
        raise RefusesUsError(f"The Twilio account of TWILIO_ACCOUNT_SID is {account.status}.")
    client = _make(us, settings.extra_ca)
    found: object = None
    try:
        if us.sender.startswith("+"):
            numbers = client.incoming_phone_numbers
            found = _asking(client, lambda: numbers.list(phone_number=us.sender, limit=1))
        elif us.service_sid:
            client.messaging.base_url = us.url.replace("//api.", "//messaging.", 1)
            _asking(client, lambda: client.messaging.v1.services(us.service_sid).fetch())
    except TransportError:
        # A key that may send, but not look anything up, is fine: then sending will tell.
        answer: Answer | None = client.http_client.last
        if answer is not None and (answer.status == 401 or _code(answer) == _UNKNOWN):
            raise
    if found == []:
        raise RefusesUsError("TWILIO_FROM is no number of this Twilio account.")
    return "the account is active"


def _asking(client: Client, ask: Any) -> Any:
    """What the SDK's call gives; raises `TransportError` and nothing else, as the port demands."""
    ours: Any = client.http_client
    ours.last = None
    try:
        return ask()
    except TransportError:
        raise
    except Exception as error:
        answer: Answer | None = ours.last
        if answer is None:  # `call` raises what the port demands: the SDK has not come that far
            raise TransportError("The text cannot be written as Twilio wants it.", permanent=True) from error
        if 200 <= answer.status < 300:
            raise UncertainError("Twilio's answer cannot be read.") from error
        raise verdict(answer, _code(answer), time.time()) from error


def _code(answer: Answer) -> int | None:
    """Twilio's own code in an answer; the SDK's exceptions have it or not, by what was asked."""
    try:
        code = answer.json()["code"]
    except (LookupError, TypeError):
        return None
    return code if isinstance(code, int) else None


_here = OfThread()


def _client(us: Twilio, extra_ca: str) -> Client:
    """This thread's client: the SDK's are not to be shared, and take 10 ms to make."""
    return _here.get((us, extra_ca), lambda: _make(us, extra_ca))


def _make(us: Twilio, extra_ca: str) -> Client:
    from twilio.http import HttpClient
    from twilio.http.response import Response
    from twilio.rest import Client

    class Ours(HttpClient):  # type: ignore[misc]
        """The SDK's client over our pool; keeps the last answer, whose headers its exceptions leave out."""

        last: Answer | None = None

        def request(
            self,
            method: str,
            uri: str,
            params: Mapping[str, object] | None = None,
            data: Mapping[str, object] | None = None,
            headers: Mapping[str, str] | None = None,
            auth: tuple[str, str] | None = None,
            timeout: float | None = None,
            allow_redirects: bool = False,
        ) -> Response:
            basic = base64.b64encode(":".join(auth or ("", "")).encode()).decode()
            self.last = call(
                NAME,
                method,
                f"{uri}?{urlencode(params, doseq=True)}" if params else uri,
                headers={**(headers or {}), "Authorization": f"Basic {basic}"},
                body=urlencode(data, doseq=True).encode() if data else None,
                extra_ca=extra_ca,
            )
            return Response(
                self.last.status, self.last.body.decode("utf-8", "replace"), dict(self.last.headers)
            )

    # An environment that is not empty keeps the SDK from reading the process's own.
    made = Client(
        us.key_sid or us.account_sid,
        us.key_secret or us.auth_token,
        account_sid=us.account_sid,
        http_client=Ours(logger=_silent(), is_async=False),
        environment={"": ""},
    )
    made.api.base_url = us.url
    return made


def _silent() -> Any:
    import logging

    return logging.getLogger("twilio.http_client")


def verify(
    settings: Settings, path: str, query: str, form: Any, body: bytes, signature: str | None
) -> Mapping[str, str]:
    """The parameters of a webhook; raises `Unauthenticated` unless Twilio signed them for our account.

    HMAC-SHA1 with the auth token over the public address and what was posted: a form's parameters
    (`form`, which may repeat keys), or for JSON the body's hash, which then is in the query. The address
    is the one we have given out: what a proxy made of it, or a client claims, does not count. The
    signature has no time in it: repetitions are known by the SID of the message.
    """
    from twilio.request_validator import RequestValidator

    us = _chosen(settings)
    url = f"{settings.public_url}{path}" + (f"?{query}" if query else "")
    given: Any = form
    try:
        if "bodySHA256" in parse_qs(query):
            given = body.decode()
        if not signature or not RequestValidator(us.auth_token).validate(url, given, signature):
            raise Unauthenticated("This webhook's signature is wrong.", slug="bad-signature")
        found = json.loads(given) if isinstance(given, str) else form.to_dict()
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("This webhook cannot be read.", slug="bad-signature") from error
    if not isinstance(found, dict) or found.get("AccountSid") != us.account_sid:
        raise Unauthenticated("This webhook is of another account.", slug="bad-signature")
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _chosen(settings: Settings) -> Twilio:
    if settings.twilio is None:
        raise TransportError("Twilio is not chosen.", permanent=True)
    return settings.twilio
