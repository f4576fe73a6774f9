"""`hearback staff` and `hearback apikey` on the database itself."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from services.followup import cli
from tests.support.followup import Browser, Followup


@pytest.fixture
def run(followup: Followup, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(cli, "load", lambda **_: followup.settings)
    return CliRunner()


def test_somebody_added_on_the_command_line_logs_in(followup: Followup, run: CliRunner) -> None:
    arguments = ["add", "Ann@acme.example", "--name", "Ann Berger", "--role", "lead", "--json"]
    added = run.invoke(cli.staff_group, arguments)
    assert added.exit_code == 0, added.output
    password = json.loads(added.output)["one_time_password"]
    reply = Browser(followup.app).log_in("ann@acme.example", password)
    assert reply.headers["Location"] == "/followup/password"
    again = run.invoke(cli.staff_group, arguments)
    assert again.exit_code == 1 and "has a login already" in again.output
    assert "ann@acme.example  lead  Ann Berger" in run.invoke(cli.staff_group, ["list"]).output
    reset = run.invoke(cli.staff_group, ["reset", "ann@acme.example"])
    assert reset.exit_code == 0 and password not in reset.output
    assert run.invoke(cli.staff_group, ["reset", "nobody@acme.example"]).exit_code == 1


def test_a_bad_address_is_refused_with_its_reason(run: CliRunner) -> None:
    refused = run.invoke(cli.staff_group, ["add", "not an address", "--name", "X"])
    assert refused.exit_code == 1 and "not an e-mail address" in refused.output


def test_a_key_made_on_the_command_line_works(followup: Followup, run: CliRunner) -> None:
    made = run.invoke(cli.apikey_group, ["create", "--scope", "tasks:read", "--scope", "tasks:write"])
    assert made.exit_code == 0 and made.output.startswith("hbk_")
    headers = {"Authorization": f"Bearer {made.output.strip()}"}
    assert followup.app.test_client().get("/followup/api/tasks", headers=headers).status_code == 200
    assert run.invoke(cli.apikey_group, ["create", "--scope", "everything"]).exit_code == 2
    assert run.invoke(cli.apikey_group, ["create"]).exit_code == 2
