"""A slow provider slows only its own channel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from unittest import mock

from services.survey import roles
from services.survey.commands import sender
from shared.channels import Message
from shared.ids import SystemIds
from shared.roles import RoleContext
from tests.support.asking import Asking


class MailThatHangs:
    """A provider that takes texts at once, and says nothing about mails until `over`."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.hanging = 0
        self.texts: list[str] = []

    def send(self, message: Message) -> str:
        if message.channel == "email":
            self.hanging += 1
            self.over.wait(30)
        else:
            self.texts.append(message.to)
        return message.delivery_id


def test_a_text_behind_mails_that_hang_leaves_at_once(survey: Asking) -> None:
    for _ in range(40):
        survey.add()
    survey.ask()
    phones = [f"+4915112345{n:03}" for n in range(3)]
    for phone in phones:
        survey.add(phone=phone)
    provider, stop = MailThatHangs(), threading.Event()
    context = RoleContext(survey.settings, "survey", survey.clock, SystemIds(), survey.db)
    with mock.patch.object(sender, "transport", lambda _settings, _channel: provider):
        sending = threading.Thread(target=roles.sender(context), args=(stop,))
        sending.start()
        try:
            _wait(lambda: provider.hanging > 0)
            survey.ask(channel="sms")
            _wait(lambda: len(provider.texts) == len(phones))
            assert not provider.over.is_set()
        finally:
            stop.set()
            provider.over.set()
            sending.join()
    assert sorted(provider.texts) == phones


def _wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)
