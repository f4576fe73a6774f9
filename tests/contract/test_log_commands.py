"""`hearback log …` says what is there, and changes what it was asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shared.errors import NotFound
from shared.events import asyncapi
from shared.log import cli
from shared.settings import Settings
from tests.contract.conftest import GROUP, KEYS, Bench, Broken

A, B = KEYS[0], KEYS[1]


@pytest.fixture(autouse=True)
def _here(log_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load", lambda **_: log_settings)


def _run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.log, words, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_topics_and_lag_are_listed(bench: Bench) -> None:
    bench.say(A, 1, 2)
    bench.flush()
    topics = {row["topic"]: row for row in json.loads(_run("topics", "--json").stdout)}
    assert topics["deliveries"]["records"] == 2
    assert "deliveries" in _run("topics").output
    assert "Nobody reads the log yet." in _run("lag").output
    source = bench.log.source(GROUP, ["deliveries"])
    while not bench.log.lag(GROUP):
        source.poll(1)
    source.close()
    [row] = json.loads(_run("lag", GROUP, "--json").stdout)
    assert (row["consumer"], row["topic"], row["unread"]) == (GROUP, "deliveries", 2)


def test_a_stopped_consumer_is_named_with_its_reason_until_it_is_resumed(bench: Bench) -> None:
    with bench.reader.transaction() as tx:
        tx.execute("INSERT INTO consumer_stop VALUES (%s, %s, 'a bug')", (GROUP, tx.now))
    assert "reporting has stopped: a bug" in _run("lag").stderr
    assert "tries again" in _run("resume", GROUP).output
    assert "had not stopped" in _run("resume", GROUP).output


def test_tail_shows_no_values_unless_asked(bench: Bench) -> None:
    bench.say(A, 1, text="a secret of Ada's")
    bench.flush()
    shown = _run("tail", "deliveries").output
    assert "message.received" in shown and "secret" not in shown
    [line] = _run("tail", "deliveries", "--values", "--json").stdout.splitlines()
    assert "secret" in json.loads(line)["value"]
    with pytest.raises(NotFound):
        _run("tail", "gossip")


def test_what_is_parked_is_listed_shown_and_discarded(bench: Bench) -> None:
    assert "Nothing is parked." in _run("parked").output
    bench.poison = {"poison"}
    bench.say(A, 1, text="poison")
    bench.say(A, 2)
    bench.flush()
    bench.consume()
    [key] = json.loads(_run("parked", "--json").stdout)
    assert (key["consumer"], key["key"], key["events"]) == (GROUP, A, 2)
    assert key["reason"].startswith(Broken.__name__)
    shown = _run("show", GROUP, "deliveries", A).output
    assert "message.received" in shown
    values = json.loads(_run("show", GROUP, "deliveries", A, "--values", "--json").stdout)
    assert [json.loads(row["value"])["text"] for row in values] == ["poison", "hello"]
    assert "2 dropped." in _run("discard", GROUP, "deliveries", A, "--yes").output
    assert bench.parked() == []


def test_replay_applies_with_the_services_own_handlers(bench: Bench) -> None:
    bench.poison = {"hello"}
    bench.say(A, 1)
    bench.say(B, 1)
    bench.flush()
    bench.consume()
    assert "1 applied, 0 still parked." in _run("replay", GROUP, "deliveries", A).output
    assert bench.parked() == [(B, 1)]
    assert "1 applied, 0 still parked." in _run("replay", GROUP).output
    assert bench.parked() == []


def test_the_catalog_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    _run("asyncapi", "-o", str(tmp_path / "events.yaml"))
    assert (tmp_path / "events.yaml").read_text() == asyncapi.text() == _run("asyncapi").output
