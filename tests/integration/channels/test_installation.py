"""A whole installation with real providers: `up`, readiness and the doctor say what they make of us."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Machine
from tests.support.providers.stand_in import StandIn, stand_in


@pytest.fixture(scope="module")
def away() -> Iterator[StandIn]:
    with stand_in() as made:
        yield made


@pytest.fixture(scope="module")
def machine(away: StandIn) -> Iterator[Machine]:
    made = Machine(env=away.environment())
    yield made
    made.close()


def test_up_starts_everything_with_real_providers_and_no_mailbox(machine: Machine) -> None:
    done = machine.run("up")
    assert done.returncode == 0, done.stderr
    assert "one-time password" in done.stdout and "ailbox" not in done.stdout
    assert machine.status()["ready"]
    assert machine.get("/mailbox/") == 404
    doctor = json.loads(machine.run("doctor", "--json").stdout)
    said = {part["name"]: part["said"] for part in doctor["parts"]}
    assert doctor["ok"] and "mailbox" not in said
    assert said["SendGrid"] == "the key may send" and said["Twilio"] == "the account is active"


def test_a_wrong_key_is_told_and_the_pages_are_served_all_the_same(machine: Machine) -> None:
    done = machine.run("up", SENDGRID_API_KEY="SG.revoked")
    assert done.returncode == 1 and "does not accept SENDGRID_API_KEY" in done.stderr
    assert machine.get("/survey/readyz") == 200
    status = json.loads(machine.run("status", "--json", SENDGRID_API_KEY="SG.revoked").stdout)
    wrong = {part["name"]: part["problem"] for part in status["parts"] if not part["ok"]}
    assert set(wrong) == {"survey worker", "followup worker"}
    assert all("sender: SendGrid does not accept SENDGRID_API_KEY" in text for text in wrong.values())
    doctor = machine.run("doctor", SENDGRID_API_KEY="SG.revoked")
    assert doctor.returncode == 1 and "SENDGRID_API_KEY" in doctor.stdout
    assert "SG.revoked" not in done.stdout + done.stderr + doctor.stdout


def test_a_provider_out_of_reach_keeps_nothing_from_starting(machine: Machine) -> None:
    done = machine.run("up", SENDGRID_API_URL="https://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout + done.stderr
    doctor = machine.run("doctor", SENDGRID_API_URL="https://127.0.0.1:9")
    assert doctor.returncode == 1 and "SendGrid cannot be reached" in doctor.stdout


def test_what_is_missing_is_named_before_anything_happens() -> None:
    nowhere = Machine(
        env={"HEARBACK_SMS": "twilio", "TWILIO_ACCOUNT_SID": "AC1", "TWILIO_FROM": "+14155550100"}
    )
    try:
        done = nowhere.run("up")
        assert done.returncode == 1 and "TWILIO_AUTH_TOKEN is not set" in done.stderr
        assert not (nowhere.home / "run").exists()
    finally:
        nowhere.close()


def test_nothing_made_up_is_sent_by_real_providers(machine: Machine, tmp_path: Path) -> None:
    people = tmp_path / "people.csv"
    people.write_text("email,score\nann@example.com,3\n")
    people.chmod(0o644)
    for command in (("demo",), ("simulate", str(people))):
        done = machine.run(*command)
        assert done.returncode != 0 and "where the mailbox is the provider" in done.stderr
