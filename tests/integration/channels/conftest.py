"""Each test gets a stand-in of the providers, and settings that send through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.channels import Message
from shared.settings import Settings
from tests.support.asking import Asking
from tests.support.postgres import FreshDatabases
from tests.support.providers.stand_in import Hooks, StandIn, stand_in


@pytest.fixture
def providers() -> Iterator[StandIn]:
    with stand_in() as made:
        yield made


@pytest.fixture
def out(providers: StandIn) -> Settings:
    """Settings for sending alone: no database."""
    return providers.settings(
        Settings(home=Path("/nowhere"), secret="s" * 40, public_url="https://feedback.example.org")
    )


@pytest.fixture
def survey(providers: StandIn, database_urls: FreshDatabases, tmp_path: Path) -> Iterator[Asking]:
    """A survey that sends by SendGrid and Twilio, behind a proxy."""
    base = Settings(
        home=tmp_path,
        secret="a secret of the tests, 32 characters or more",
        public_url="https://feedback.example.org",
        database_urls=database_urls,
    )
    made = Asking(providers.settings(base), by_settings=True)
    yield made
    made.close()


@pytest.fixture
def hooks(providers: StandIn, survey: Asking) -> Hooks:
    """Posts webhooks into the survey, at its clock's time."""

    def post(path: str, body: bytes, headers: object) -> int:
        return survey.app.test_client().post(path, data=body, headers=dict(headers)).status_code  # type: ignore[call-overload]

    return Hooks(
        providers, post, "https://feedback.example.org", clock=lambda: survey.clock.now().timestamp()
    )


@pytest.fixture
def mail() -> Message:
    return Message(
        "01890000-0000-7000-8000-0000000000aa",
        "email",
        "ann@example.com",
        "How likely …?\n.a line that begins with a dot\n",
        to_name="Ann, O'Neill",
        subject="Wie wahrscheinlich ist es, dass Sie uns weiterempfehlen würden?",
        html="<p>How likely …?</p>",
        headers={
            "List-Unsubscribe": f"<https://feedback.example.org/u/{'x' * 90}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "Auto-Submitted": "auto-generated",
        },
        sender_name="Example Ltd",
        sender_email="feedback@example.org",
        reply_to="hello@example.org",
    )


@pytest.fixture
def sms() -> Message:
    return Message("01890000-0000-7000-8000-0000000000bb", "sms", "+4930123456", "How likely? 0-10")
