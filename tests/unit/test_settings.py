"""Settings come from the environment, from files, from the data folder; wrong ones are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.settings import DATABASES, BadSettings, Settings, load, reachable

SECRET = "0123456789abcdef0123456789abcdef"


def urls(**given: str) -> dict[str, str]:
    return {
        f"HEARBACK_{name.upper()}_DATABASE_URL": f"postgresql://{name}@db/{name}" for name in DATABASES
    } | given


def environment(tmp_path: Path, **given: str) -> dict[str, str]:
    return {"HEARBACK_HOME": str(tmp_path), "HEARBACK_SECRET": SECRET, **urls(), **given}


def test_has_defaults_for_one_machine(tmp_path: Path) -> None:
    settings = load(environment(tmp_path))
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.public_url == settings.survey_url == settings.mailbox_url == "http://127.0.0.1:8080"


def test_follows_the_port_everywhere_unless_told_otherwise(tmp_path: Path) -> None:
    settings = load(
        environment(tmp_path, HEARBACK_PORT="9000", HEARBACK_PUBLIC_URL="https://feedback.example.org/")
    )
    assert settings.public_url == "https://feedback.example.org"
    assert settings.survey_url == settings.local_url == "http://127.0.0.1:9000"


def test_reads_a_secret_from_a_file(tmp_path: Path) -> None:
    given = environment(tmp_path, HEARBACK_SECRET_FILE=str(tmp_path / "kept"))
    del given["HEARBACK_SECRET"]
    with pytest.raises(BadSettings, match="HEARBACK_SECRET_FILE"):
        load(given)
    (tmp_path / "kept").write_text(SECRET + "\n")
    assert load(given).secret == SECRET


def test_finds_what_the_launcher_noted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    passwords = {name: f"p/{name}" for name in DATABASES}
    (tmp_path / "postgres.json").write_text(json.dumps({"port": 15999, "passwords": passwords}))
    settings = load({"HEARBACK_HOME": str(tmp_path)})
    assert settings.secret == SECRET
    assert settings.database_urls["log"] == "postgresql://log:p%2Flog@127.0.0.1:15999/log"


def test_says_what_is_missing_unless_it_is_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="hearback up"):
        load({"HEARBACK_HOME": str(tmp_path)})
    assert load({"HEARBACK_HOME": str(tmp_path)}, first_start=True).port == 8080


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEARBACK_PORT", "eighty"),
        ("HEARBACK_PORT", "70000"),
        ("HEARBACK_SECRET", "short"),
        ("HEARBACK_LOG", "paper"),
        ("HEARBACK_MAIL", "pigeon"),
        ("HEARBACK_SMS", "smoke"),
    ],
)
def test_names_the_setting_that_is_wrong(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=name):
        load(environment(tmp_path, **{name: value}))


def test_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    load(environment(tmp_path))
    with pytest.raises(BadSettings):
        load(environment(tmp_path, HEARBACK_PORT="x"))
    assert dict(os.environ) == before


def test_reaches_itself_wherever_it_listens() -> None:
    assert reachable("0.0.0.0") == reachable("::") == "127.0.0.1"
    assert reachable("::1") == "[::1]"
    assert reachable("10.0.0.5") == "10.0.0.5"


def test_derives_a_key_per_purpose_and_accepts_the_previous_secret(tmp_path: Path) -> None:
    old = Settings(home=tmp_path, secret=SECRET)
    new = Settings(home=tmp_path, secret="f" * 32, previous_secret=SECRET)
    assert old.key("session") != old.key("csrf")
    assert new.keys("session") == [old.key("session"), new.key("session")]


def test_shows_no_secret(tmp_path: Path) -> None:
    shown = repr(load(environment(tmp_path)))
    assert SECRET not in shown and "postgresql" not in shown
