"""SendGrid and Twilio behind one address, their settings, and the webhooks they post back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from shared.provider_settings import SendGrid as SendGridSettings
from shared.provider_settings import Twilio as TwilioSettings
from shared.settings import Settings
from tests.support.history import Taken
from tests.support.providers.sendgrid import SendGrid
from tests.support.providers.server import Reply, Request, Server
from tests.support.providers.twilio import Twilio

Post = Callable[[str, bytes, Mapping[str, str]], int]
"""Posts to a path with its query; returns the status."""


class StandIn:
    """Both providers, on one port."""

    def __init__(self, port: int = 0) -> None:
        self.sendgrid, self.twilio = SendGrid(), Twilio()
        self.server = Server(self._handle, _is_hand_over, port)

    def _handle(self, request: Request) -> Reply:
        ours = request.path.startswith("/v3/")
        return (self.sendgrid if ours else self.twilio).handle(request)

    def environment(self) -> dict[str, str]:
        """The settings with which Hearback sends through it."""
        return {
            "HEARBACK_MAIL": "sendgrid",
            "HEARBACK_SMS": "twilio",
            "HEARBACK_EXTRA_CA": self.server.ca,
            "SENDGRID_API_KEY": self.sendgrid.key,
            "SENDGRID_WEBHOOK_PUBLIC_KEY": self.sendgrid.webhook_key,
            "SENDGRID_API_URL": self.server.url,
            "TWILIO_ACCOUNT_SID": self.twilio.account,
            "TWILIO_AUTH_TOKEN": self.twilio.token,
            "TWILIO_FROM": self.twilio.number,
            "TWILIO_API_URL": self.server.url,
        }

    def settings(self, base: Settings) -> Settings:
        """`base`, with mails by SendGrid and texts by Twilio."""
        import base64

        return replace(
            base,
            mail="sendgrid",
            sms="twilio",
            extra_ca=self.server.ca,
            sendgrid=SendGridSettings(
                self.sendgrid.key, base64.b64decode(self.sendgrid.webhook_key), self.server.url
            ),
            twilio=TwilioSettings(
                self.twilio.account, self.twilio.token, self.twilio.number, url=self.server.url
            ),
        )

    def taken(self) -> list[Taken]:
        """Every message that one of them has taken."""
        mails = [
            (mail["personalizations"][0]["to"][0]["email"], mail["content"][0]["value"])
            for mail in self.sendgrid.mails
        ]
        texts = [(text["To"], text["Body"]) for text in self.twilio.texts]
        ids = self.sendgrid.delivery_ids() + self.twilio.delivery_ids()
        return [Taken(id, to, text) for id, (to, text) in zip(ids, mails + texts, strict=True)]

    def close(self) -> None:
        self.server.close()


class Hooks:
    """Posts the providers' webhooks. `public_url` is what Twilio was told, `clock` gives epoch seconds."""

    def __init__(
        self, stand_in: StandIn, post: Post, public_url: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.stand_in, self.post, self.public_url, self.clock = stand_in, post, public_url, clock

    def events(self, *events: Any, at: float | None = None) -> int:
        """A batch of SendGrid's."""
        raw, headers = self.stand_in.sendgrid.signed(events, self.clock() if at is None else at)
        return self.post("/webhooks/sendgrid", raw, headers)

    def text(self, params: Mapping[str, str]) -> int:
        """A customer's text."""
        return self._twilio("/webhooks/twilio/message", params)

    def status(self, text: Mapping[str, str], status: str, **more: str) -> int:
        """What became of a text that was taken."""
        parts = urlsplit(text["StatusCallback"])
        return self._twilio(
            f"{parts.path}?{parts.query}", self.stand_in.twilio.report(text["sid"], status, **more)
        )

    def _twilio(self, path: str, params: Mapping[str, str]) -> int:
        raw, headers = self.stand_in.twilio.signed(self.public_url + path, params)
        return self.post(path, raw, headers)


class Reporter:
    """Tells of everything taken, by itself: each report `copies` times, out of order when `shuffled`."""

    def __init__(self, stand_in: StandIn, hooks: Hooks, *, copies: int = 1, shuffled: bool = False) -> None:
        self.stand_in, self.hooks, self.copies, self.shuffled = stand_in, hooks, copies, shuffled
        self.random = random.Random(1)
        self.refused = 0
        self._told = [0, 0]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)

    def step(self) -> bool:
        """Tells what is new; whether there was any."""
        mails = self.stand_in.sendgrid.mails[self._told[0] :][:400]
        texts = self.stand_in.twilio.texts[self._told[1] :][:100]
        self._told[0] += len(mails)
        self._told[1] += len(texts)
        for batch in self._in_some_order([self._events(mails)] if mails else []):
            self._count(self.hooks.events(*batch))
        for text, status in self._in_some_order(
            [(text, status) for text in texts for status in ("queued", "sent", "delivered")]
        ):
            self._count(self.hooks.status(text, status))
        return bool(mails or texts)

    def _events(self, mails: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        made = [
            self.stand_in.sendgrid.event(mail["custom_args"]["delivery_id"], kind)
            for mail in mails
            for kind in ("processed", "delivered")
        ]
        if self.shuffled:
            self.random.shuffle(made)
        return made

    def _in_some_order(self, calls: list[Any]) -> list[Any]:
        calls = calls * self.copies
        if self.shuffled:
            self.random.shuffle(calls)
        return calls

    def _count(self, status: int) -> None:
        self.refused += not 200 <= status < 300

    def _run(self) -> None:
        while not self._over.is_set():
            if not self.step():
                self._over.wait(0.02)


def _is_hand_over(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith(("/mail/send", "/Messages.json"))


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """One that is closed at the end."""
    made = StandIn()
    try:
        yield made
    finally:
        made.close()
