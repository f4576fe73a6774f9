"""What containers need of the program: secrets made once, its own database only, a cheap look at health."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shared import probe
from shared.cli.setup import secrets
from shared.settings import BadSettings, load


def test_secrets_are_made_once_and_each_part_has_a_folder_of_its_own(tmp_path: Path) -> None:
    given = tmp_path / "survey" / "database_url"
    given.parent.mkdir()
    given.write_text("postgresql://survey:mine@elsewhere/survey\n")
    first = CliRunner().invoke(secrets, [str(tmp_path)])
    assert first.exit_code == 0 and "survey" not in first.output
    made = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.glob("*/*")}
    parts = ("followup", "reporting", "log", "survey", "postgres")
    assert set(made) == {"common/secret", "postgres/password", *(f"{part}/database_url" for part in parts)}
    assert len(set(made.values())) == len(made)
    assert made["postgres/password"].strip() in made["postgres/database_url"]
    assert CliRunner().invoke(secrets, [str(tmp_path)]).output == "All secrets are there.\n"
    assert made == {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.glob("*/*")}


def test_a_process_needs_the_address_of_its_own_database_only(tmp_path: Path) -> None:
    given = {
        "HEARBACK_HOME": str(tmp_path),
        "HEARBACK_SECRET": "s" * 32,
        "HEARBACK_SURVEY_DATABASE_URL": "postgresql://survey@db/survey",
    }
    settings = load(given, databases=["survey"])
    with pytest.raises(BadSettings, match="HEARBACK_LOG_DATABASE_URL"):
        settings.database_urls["log"]
    with pytest.raises(BadSettings, match="HEARBACK_FOLLOWUP_DATABASE_URL"):
        load(given)


def test_a_container_is_ready_when_what_it_runs_reports_so(tmp_path: Path) -> None:
    assert list(probe.problems(tmp_path, 1)) == ["nothing runs here yet"]
    report = tmp_path / "worker-survey-relay.json"
    roles = {"relay": {"ready": True, "error": ""}}
    report.write_text(json.dumps({"beat": time.time(), "roles": roles}))
    assert list(probe.problems(tmp_path, 1)) == []
    roles = {"relay": {"ready": False, "error": "Kafka does not answer"}}
    report.write_text(json.dumps({"beat": time.time() - 60, "roles": roles}))
    said = "; ".join(probe.problems(tmp_path, 1))
    assert said == (
        "survey-relay has stopped reporting; survey-relay: relay is not ready: Kafka does not answer"
    )
    (tmp_path / "survey-web.pid").write_text(f"{os.getpid()} 0\n")
    assert "survey web does not answer" in "; ".join(probe.problems(tmp_path, 1))
