"""`hearback simulate`: what it reads, what it plays, and that its check can fail."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.cli import show
from shared.errors import Invalid
from shared.simulate import rows
from shared.simulate.cli import SCOPES
from shared.simulate.http import Client
from shared.simulate.run import NotEqual, cast, known, play
from tests.support.machine import Machine

ANSWERS = """answered_at,touchpoint,score,comment
01/05/2026 20:23,Order,0,Nobody came
02/05/2026 09:00,Order,10,10
02/05/2026 09:05,Support,7,
03/05/2026 10:00,Support,6,"Two words, and a ""quote""; also 3 numbers"
03/05/2026 10:01,Order,9,STOP
03/05/2026 10:02,Order,3,Stop.
04/05/2026 10:02,Order,5,0
04/05/2026 10:03,Order,8,schön – sehr gut 👍
"""
FORMAT = "%d/%m/%Y %H:%M"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    path.write_text(ANSWERS)
    return path


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    found = Machine()
    found.up()
    yield found
    found.close()


def test_answers_are_read_in_order_of_their_time_and_drawn_alike_for_the_same_seed(file: Path) -> None:
    first, again = (rows.read(file, FORMAT, 0.5, 3) for _ in range(2))

    assert first == again
    assert [answer.answered_at for answer in first] == sorted(answer.answered_at for answer in first)
    assert {answer.channel for answer in first} == {"email", "sms"}
    assert all(answer.channel == "sms" for answer in rows.read(file, FORMAT, 1, 3))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2026-05-01,Order,3,late", "line 2: answered_at"),
        ("01/05/2026 20:23,Order,11,late", "line 2: score"),
        ("01/05/2026 20:23,Order,3.5,late", "line 2: score"),
    ],
)
def test_a_row_that_cannot_be_played_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(f"answered_at,touchpoint,score,comment\n{line}\n")

    with pytest.raises(Invalid, match=says):
        rows.read(path, FORMAT, 0, 1)


def test_a_message_that_was_begun_before_one_that_is_read_already_is_read_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = [{"seq": "1", "at": "10:00:00.2"}]

    def api(self: Client, method: str, path: str) -> dict[str, Any]:
        after = next((part[7:] for part in path.split("&") if part.startswith("cursor=")), "")
        found = [one for one in there if one["seq"] > after][:1]
        last = found[-1]["seq"] if found else after
        return {"messages": found, "last": last, "next": last if there[-1]["seq"] > last else None}

    monkeypatch.setattr(Client, "api", api)
    client = Client("", {})
    found, cursor = client.news("")
    assert [one["seq"] for one in found] == ["1"] and client.news(cursor) == ([], cursor)
    there += [{"seq": "2", "at": "10:00:00.1"}, {"seq": "3", "at": "10:00:00.1"}]
    found, cursor = client.news(cursor)
    assert [one["seq"] for one in found] == ["2", "3"] and client.news(cursor) == ([], cursor)


@pytest.mark.parametrize("share", ["0", "1"])
def test_every_answer_is_played_and_every_count_is_equal(machine: Machine, file: Path, share: str) -> None:
    done = machine.run("simulate", str(file), "--date-format", FORMAT, "--sms-share", share)

    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for count, name in re.findall(r"^ +(\d+) +([a-z-]+) *$", done.stdout, re.M)}
    assert counts == {
        "asked": 8,
        "answered": 8,
        "detractors": 4,
        "passives": 2,
        "promoters": 2,
        "tasks": 4,
        # By mail STOP is a word in a comment; by text it ends the texts, and the score counts all the same.
        "opt-outs": 2 if share == "1" else 0,
    }


def test_the_check_fails_and_says_where_when_a_service_does_not_count(machine: Machine, file: Path) -> None:
    scopes = [word for scope in SCOPES for word in ("--scope", scope)]
    key = json.loads(machine.run("apikey", "create", "--json", *scopes).stdout)["key"]
    client = Client(machine.url, {"Authorization": f"Bearer {key}"})
    run = cast(rows.read(file, FORMAT, 0, 1), patience=8)
    known(client, 30)
    counting = machine.pid("reporting-worker")
    os.kill(counting, signal.SIGSTOP)
    try:
        with pytest.raises(NotEqual, match="reporting: detractors: 0, played 4"):
            play(run, client, show.Steps())
    finally:
        os.kill(counting, signal.SIGCONT)
