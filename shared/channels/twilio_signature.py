"""Whether Twilio signed a webhook; apart from its SDK's client, which the web has no use for."""

from __future__ import annotations

from typing import Any

from twilio.request_validator import RequestValidator

from shared.errors import Unauthenticated
from shared.settings import Twilio

HEADER = "X-Twilio-Signature"


def verify(account: Twilio, url: str, form: Any, signature: str | None) -> None:
    """Raises `Unauthenticated` unless Twilio signed exactly this: HMAC-SHA-1 over URL and form, in base64.

    `url` is the public one with its query, `form` the POSTed fields as a MultiDict.
    https://www.twilio.com/docs/usage/security#validating-requests
    """
    if not signature:
        raise Unauthenticated("This webhook is not signed.", slug="bad-signature")
    if not RequestValidator(account.auth_token).validate(url, form, signature):
        raise Unauthenticated("This webhook's signature is wrong.", slug="bad-signature")
