"""Log lines carry no tokens and nothing about persons."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from shared.telemetry import hide_personal_data, mask


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("GET /a/Q2hpY2tlbiBzb3Vw-_x", "GET /a/…"),
        ("GET /u/Q2hpY2tlbiBzb3VwX answered 200", "GET /u/… answered 200"),
        ("GET /survey/search?q=maria", "GET /survey/search?…"),
        ("to https://example.org/x?token=1&b=2 now", "to https://example.org/x?… now"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer …"),
        ("postgresql://survey:s3cret@127.0.0.1:5432/survey", "postgresql://survey:…@127.0.0.1:5432/survey"),
        ("could not send to maria.lopez@example.org: refused", "could not send to …@…: refused"),
        ("number +49 171 123 45 67 is not reachable", "number +… is not reachable"),
        ("number +491711234567", "number +…"),
        ("ERROR: duplicate\nDETAIL:  Key (email)=(x) exists.", "ERROR: duplicate\nDETAIL: …"),
        (
            "column \"nme\" does not exist\nLINE 1: UPDATE customer SET nme = 'Alice Meier'\n   ^",
            'column "nme" does not exist\nLINE 1: …\n   ^',
        ),
        ("syntax error\nQUERY:  SELECT 'Alice'", "syntax error\nQUERY: …"),
        ('invalid input syntax for type uuid: "Alice Meier"', "invalid input syntax for type uuid: …"),
        ('invalid input value for enum mood: "Alice"', "invalid input value for enum mood: …"),
        ('date/time field value out of range: "31.02.1970"', "date/time field value out of range: …"),
        ("at 2026-03-03T10:00:00+00:00 nothing", "at 2026-03-03T10:00:00+00:00 nothing"),
        (
            "12 rows, id 0195d3a0-5b1c-7c1e-8a53-0242ac120002",
            "12 rows, id 0195d3a0-5b1c-7c1e-8a53-0242ac120002",
        ),
    ],
)
def test_masks_what_is_nobodys_business_and_nothing_else(said: str, shown: str) -> None:
    assert mask(said) == shown


def test_hides_values_by_their_name_at_any_depth() -> None:
    line = {"event": "sent", "email": "x", "fields": {"comment": "bad", "count": 3}, "list": ["a@b.org"]}
    assert hide_personal_data(None, "", line) == {
        "event": "sent",
        "email": "…",
        "fields": {"comment": "…", "count": 3},
        "list": ["…@…"],
    }


def test_sends_everybodys_lines_as_json_without_the_address_in_a_traceback() -> None:
    program = """
import logging, structlog
from shared.telemetry import set_up
set_up("probe")
logging.getLogger("some.library").warning("for %s", "maria@example.org")
try:
    raise ValueError("maria@example.org is wrong")
except ValueError:
    structlog.get_logger("ours").error("failed", count=2, exc_info=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    library, ours = map(json.loads, done.stderr.splitlines())
    assert library["event"] == "for …@…" and library["part"] == "probe" and library["level"] == "warning"
    assert ours["count"] == 2 and "ValueError: …@… is wrong" in ours["exception"]
    assert "maria" not in done.stderr
    assert logging.getLogger().handlers is not None


def test_a_line_that_nobody_takes_any_more_fails_nothing() -> None:
    program = """
import os, sys
from shared.telemetry import note, set_up
set_up("probe")
reading, writing = os.pipe()
os.dup2(writing, 2)
os.close(reading)
note("ours", "request", {"status": 200})
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
