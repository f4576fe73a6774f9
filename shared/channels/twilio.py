"""Twilio: texts handed over by its SDK, one client per thread; its signed webhooks."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests
import requests.adapters
import urllib3
from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.http.response import Response
from twilio.rest import Client

from shared.channels import TIMEOUT_SECONDS, CredentialsError, Message, TransportError, UncertainError
from shared.channels.http import context, retry_after, unreachable
from shared.settings import Settings, Twilio

NAME = "Twilio"
# The number cannot get texts from us: https://www.twilio.com/docs/api/errors (21610 says that it sent STOP).
OPTED_OUT = 21610
# Ours to mend: the sender, the service, its country, the account. The message waits.
_OURS = frozenset({20003, 20005, 20404, 21212, 21408, 21603, 21606, 21609, 21611, 21612, 21659, 21660, 21705})
_local = threading.local()


class TwilioTransport:
    """Speaks to the 2010-04-01 API."""

    def __init__(self, settings: Settings) -> None:
        assert settings.twilio is not None  # noqa: S101 (load makes it when Twilio is chosen)
        self.settings: Twilio = settings.twilio
        self.ca = settings.extra_ca
        self.callback = f"{settings.public_url}/webhooks/twilio/status?delivery="

    def send(self, message: Message) -> str:
        """Hands a text over; returns Twilio's id for it (SM…)."""
        client, http = self._client()
        via = (
            {"messaging_service_sid": self.settings.service_sid}
            if self.settings.service_sid
            else {"from_": self.settings.sender}
        )
        try:
            made = client.messages.create(
                to=message.to,
                body=message.text,
                status_callback=self.callback + quote(message.delivery_id),
                **via,
            )
        except Exception as error:
            raise _translated(error, http.answered) from error
        return str(made.sid or "")

    def check(self) -> str:
        """Fetches the account. Raises `CredentialsError` when it is not ours or not active."""
        client, http = self._client()
        try:
            account = client.api.v2010.accounts(self.settings.account_sid).fetch()
        except Exception as error:
            raise _translated(error, http.answered) from error
        status = getattr(account.status, "value", account.status)
        if status != "active":
            raise CredentialsError(f"{NAME}'s account in TWILIO_ACCOUNT_SID is {status}.")
        return f"{NAME} accepts the account"

    def _client(self) -> tuple[Client, _Http]:
        # Its session is not made for several threads, and nothing of it outlives a fork.
        key = (os.getpid(), self.settings, self.ca)
        if getattr(_local, "key", None) != key:
            http = _Http(self.ca)
            user, password = (
                (self.settings.key_sid, self.settings.key_secret)
                if self.settings.key_sid
                else (self.settings.account_sid, self.settings.auth_token)
            )
            client = Client(user, password, self.settings.account_sid, http_client=http)
            client.api.base_url = self.settings.url
            _local.key, _local.client = key, (client, http)
        found: tuple[Client, _Http] = _local.client
        return found


class _Http(TwilioHttpClient):  # type: ignore[misc] # it carries no types
    """The SDK's client in time, remembering the last answer's headers, which its exceptions leave out."""

    def __init__(self, ca: str) -> None:
        super().__init__()
        # The whole exchange, not each step of it; the constructor takes a number only.
        self.timeout = urllib3.Timeout(total=TIMEOUT_SECONDS)
        self.answered: Mapping[str, str] = {}
        if self.session is not None:
            self.session.mount("https://", _Adapter(ca))

    def request(self, *args: Any, **kwargs: Any) -> Response:
        self.answered = {}
        answer = super().request(*args, **kwargs)
        self.answered = answer.headers or {}
        return answer


class _Adapter(requests.adapters.HTTPAdapter):
    """Trusts our certificates too, whatever the environment tells requests to trust."""

    def __init__(self, ca: str) -> None:
        self._context = context(ca)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)


def _translated(error: Exception, headers: Mapping[str, str]) -> TransportError:
    if isinstance(error, TwilioException):
        return _from_twilio(error, headers)
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.SSLError):
        return unreachable(NAME, error)
    if isinstance(error, requests.exceptions.ConnectionError) and _never_connected(error):
        return unreachable(NAME, error)
    if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError | OSError):
        return UncertainError(f"{NAME} did not answer in time.")
    # Its answer could not be read: it may well have taken the message.
    return UncertainError(f"{NAME}'s answer cannot be read ({type(error).__name__}).")


def _never_connected(error: requests.exceptions.ConnectionError) -> bool:
    cause: Any = error.args[0] if error.args else None
    reason = getattr(cause, "reason", cause)
    return isinstance(reason, urllib3.exceptions.NewConnectionError)


def _from_twilio(error: TwilioException, headers: Mapping[str, str]) -> TransportError:
    status = int(getattr(error, "status", 0) or 0)
    code = int(getattr(error, "code", 0) or 0)
    if status in (429, 503):
        return TransportError(
            f"{NAME} asks to wait ({status}).", permanent=False, retry_after=retry_after(headers)
        )
    if status in (401, 403) or code in _OURS:
        return CredentialsError(
            f"{NAME} does not accept the account, token or sender ({code or status}): see "
            "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and TWILIO_FROM."
        )
    if code == OPTED_OUT:
        return TransportError("The customer has sent STOP to this number.", permanent=True)
    if isinstance(error, TwilioRestException) and 400 <= status < 500:
        return TransportError(f"{NAME} refused the message ({code or status}).", permanent=True)
    return UncertainError(f"{NAME} answered {status or 'what cannot be read'}.")
