"""Whether providers accept us: what each wrong credential is called, and what the sender makes of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shared.channels import credentials
from shared.channels.credentials import check, watched
from shared.roles import Health, every
from shared.settings import Settings
from tests.support.providers.stand_in import StandIn

ROOT = Path(__file__).resolve().parents[3]


def problem(settings: Settings, name: str) -> tuple[str, bool]:
    found = next(one for one in check(settings) if one.name == name)
    return found.problem, found.wrong


def test_right_ones_are_accepted_and_nothing_is_sent(providers: StandIn, out: Settings) -> None:
    assert [(one.name, one.problem, bool(one.said)) for one in check(out)] == [
        ("SendGrid", "", True),
        ("Twilio", "", True),
    ]
    assert providers.sendgrid.mails == [] and providers.twilio.texts == []
    assert {request.method for request in providers.server.requests} == {"GET"}


def test_the_mailbox_is_no_provider(tmp_path: Path) -> None:
    assert check(Settings(home=tmp_path, secret="s" * 40)) == []


def test_a_key_that_is_unknown_or_may_not_send_is_named(providers: StandIn, out: Settings) -> None:
    providers.sendgrid.scopes = ["stats.read"]
    said, wrong = problem(out, "SendGrid")
    assert wrong and "SENDGRID_API_KEY may not send mail" in said
    assert out.sendgrid is not None
    said, wrong = problem(replace(out, sendgrid=replace(out.sendgrid, api_key="SG.other")), "SendGrid")
    assert wrong and "does not accept SENDGRID_API_KEY" in said and "SG.other" not in said


def test_a_wrong_token_number_service_or_account_is_named(providers: StandIn, out: Settings) -> None:
    assert out.twilio is not None

    def changed(**values: str) -> tuple[str, bool]:
        assert out.twilio is not None
        return problem(replace(out, twilio=replace(out.twilio, **values)), "Twilio")

    assert changed(auth_token="other")[1] and changed(account_sid="AC9")[1]
    said, wrong = changed(sender="+14155550199")
    assert wrong and "TWILIO_FROM" in said
    assert changed(sender="", service_sid=providers.twilio.service) == ("", False)
    assert changed(sender="", service_sid="MG9")[1]
    providers.twilio.keys = {"SK1": "hush"}
    assert changed(key_sid="SK1", key_secret="hush") == ("", False)
    assert changed(key_sid="SK1", key_secret="hash")[1]
    providers.twilio.status = "suspended"
    said, wrong = problem(out, "Twilio")
    assert wrong and "suspended" in said


def test_a_provider_out_of_reach_is_a_problem_and_no_verdict(out: Settings) -> None:
    assert out.sendgrid is not None and out.twilio is not None
    away = replace(
        out,
        sendgrid=replace(out.sendgrid, url="https://127.0.0.1:9"),
        twilio=replace(out.twilio, url="https://127.0.0.1:9"),
    )
    for name in ("SendGrid", "Twilio"):
        said, wrong = problem(away, name)
        assert "cannot be reached" in said and not wrong
    said, wrong = problem(replace(out, extra_ca=""), "SendGrid")
    assert "HEARBACK_EXTRA_CA" in said and not wrong


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Health, list[int], threading.Event]]:
    monkeypatch.setattr(credentials, "_AGAIN", 0.05)
    monkeypatch.setattr(credentials, "_EVERY", 0.05)

    def start(settings: Settings) -> tuple[Health, list[int], threading.Event]:
        from shared import roles

        health, steps, stop = Health(), list[int](), threading.Event()

        def step() -> bool:
            steps.append(1)
            return False

        def work() -> None:
            roles._here.health = health
            watched(settings, every(0.01, step, "sending"))(stop)

        threading.Thread(target=work, daemon=True).start()
        return health, steps, stop

    return start


def until(fine: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not fine():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sender_is_unready_while_its_key_is_refused_and_goes_on_for_the_other_channel(
    providers: StandIn, out: Settings, run: Callable[..., tuple[Health, list[int], threading.Event]]
) -> None:
    right, providers.sendgrid.key = providers.sendgrid.key, "SG.another"
    health, steps, stop = run(out)
    until(lambda: bool(health.error))
    assert "SENDGRID_API_KEY" in health.error and not health.ready
    before = len(steps)
    until(lambda: len(steps) > before)
    providers.sendgrid.key = right
    until(lambda: health.ready)
    stop.set()


def test_a_provider_out_of_reach_keeps_no_sender_from_being_ready(
    out: Settings, run: Callable[..., tuple[Health, list[int], threading.Event]]
) -> None:
    assert out.sendgrid is not None
    health, _, stop = run(replace(out, sendgrid=replace(out.sendgrid, url="https://127.0.0.1:9")))
    until(lambda: health.ready)
    stop.set()


def test_no_process_loads_what_it_does_not_use() -> None:
    code = (
        "import sys, services.survey.app, services.followup.app;"
        "import services.survey.roles, services.followup.roles;"
        "from shared.channels import credentials;"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('twilio', 'sendgrid', 'requests', 'smtplib', 'cryptography')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
