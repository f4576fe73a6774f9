"""The small rules of the web layer: what may follow a login, what a log may hold, how pages write things."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import ManualClock
from shared.errors import Gone, HearbackError, Invalid
from shared.ids import SystemIds
from shared.settings import Settings
from shared.web import Cursor, capability, safe_next, service_auth, session
from shared.web.filters import band, money, near, nps, number, plural, signed
from shared.web.observe import masked
from shared.web.service import Service, WebDatabase

STAFF = "01890000-0000-7000-8000-000000000001"


def _settings(secret: str = "s" * 40, previous: str | None = None) -> Settings:
    return Settings(home=Path("/nowhere"), secret=secret, previous_secret=previous)


def _app(clock: ManualClock, settings: Settings | None = None) -> Flask:
    app = Flask("test")
    ids = SystemIds()
    settings = settings or _settings()
    app.extensions["hearback"] = Service("survey", settings, WebDatabase("", clock, ids), clock, ids, "test")
    return app


def _cookie(app: Flask, *, epoch: int = 3, must_change: bool = False) -> str:
    with app.app_context():
        response = Response()
        session.start(response, STAFF, epoch, must_change=must_change)
        return response.headers["Set-Cookie"].split(";")[0].partition("=")[2]


def _read(app: Flask, cookie: str) -> session.Session | None:
    with app.test_request_context(headers={"Cookie": f"{session.COOKIE}={cookie}"}) as context:
        found: Service = app.extensions["hearback"]
        return session.read(context.request, found)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 3, 3, 10, 0, tzinfo=UTC))


@pytest.mark.parametrize("url", ["/followup/inbox", "/survey/customers?q=a%20b#top", "/"])
def test_a_login_leads_back_to_pages_of_our_own(url: str) -> None:
    assert safe_next(url) == url


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "//evil.example",
        "/\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/a\r\nb",
        "x",
    ],
)
def test_a_login_leads_nowhere_else(url: str | None) -> None:
    assert safe_next(url, "/home") == "/home"


def test_a_session_says_whose_it_is_for_twelve_hours(clock: ManualClock) -> None:
    app = _app(clock)
    cookie = _cookie(app, must_change=True)
    clock.advance(timedelta(hours=11, minutes=59))
    found = _read(app, cookie)
    assert found is not None
    assert (found.staff_id, found.epoch, found.must_change) == (STAFF, 3, True)
    clock.advance(timedelta(minutes=2))
    assert _read(app, cookie) is None


def test_a_session_made_with_another_secret_or_changed_on_the_way_is_none(clock: ManualClock) -> None:
    cookie = _cookie(_app(clock))
    assert _read(_app(clock, _settings("t" * 40)), cookie) is None
    assert _read(_app(clock), cookie[:-2] + ("AA" if cookie[-2:] != "AA" else "BB")) is None
    assert _read(_app(clock), "x" * 2000) is None


def test_a_session_survives_the_rotation_of_the_secret(clock: ManualClock) -> None:
    cookie = _cookie(_app(clock))
    assert _read(_app(clock, _settings("t" * 40, previous="s" * 40)), cookie) is not None


def test_a_session_cookie_is_kept_from_scripts_and_other_sites(clock: ManualClock) -> None:
    app = _app(clock, Settings(home=Path("/x"), secret="s" * 40, public_url="https://hear.example"))
    with app.app_context():
        response = Response()
        session.start(response, STAFF, 1)
    header = response.headers["Set-Cookie"]
    assert "HttpOnly" in header and "SameSite=Lax" in header and "Secure" in header and "Path=/" in header


def test_a_capability_lets_its_bearer_do_one_thing_for_a_day(clock: ManualClock) -> None:
    with _app(clock).app_context():
        token = capability.make("notice-answer", {"notice": "n1"})
        assert capability.read("notice-answer", token) == {"notice": "n1"}
        with pytest.raises(Invalid):
            capability.read("something-else", token)
        with pytest.raises(Invalid):
            capability.read("notice-answer", token + "x")
        clock.advance(timedelta(days=1, seconds=2))
        with pytest.raises(Gone):
            capability.read("notice-answer", token)


def test_a_service_is_known_by_a_short_lived_header(clock: ManualClock) -> None:
    header = service_auth.header(_settings(), "permits", clock)["Authorization"]
    assert service_auth.check(_settings(), clock, header) == "permits"
    assert service_auth.check(_settings("t" * 40), clock, header) is None
    assert service_auth.check(_settings(), clock, "Bearer abc") is None
    clock.advance(timedelta(seconds=302))
    assert service_auth.check(_settings(), clock, header) is None


def test_a_service_is_known_to_one_whose_clock_is_behind(clock: ManualClock) -> None:
    header = service_auth.header(_settings(), "permits", clock)["Authorization"]
    clock.advance(-timedelta(seconds=290))
    assert service_auth.check(_settings(), clock, header) == "permits"
    clock.advance(-timedelta(seconds=12))
    assert service_auth.check(_settings(), clock, header) is None


@given(st.lists(st.one_of(st.text(max_size=40), st.integers(), st.none()), min_size=1, max_size=4))
def test_a_cursor_comes_back_as_it_went(values: list[object]) -> None:
    assert Cursor.decode(Cursor.encode(*values), len(values)) == values


@given(st.text(max_size=60))
def test_a_damaged_cursor_is_refused_with_a_reason(text: str) -> None:
    try:
        Cursor.decode(text, 7)
    except HearbackError as error:
        assert error.status == 422


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(Invalid):
        Cursor.decode(Cursor.encode("a", "b"), 3)
    with pytest.raises(Invalid):
        Cursor.decode(Cursor.encode({"a": 1}), 1)
    assert Cursor.decode(None, 2) is None


def test_the_log_never_sees_a_token_or_an_address() -> None:
    token = SystemIds().token()
    assert masked(f"/a/{token}") == "/a/…"
    assert masked("/a/short/x") == "/a/…/…"
    assert masked(f"/u/{token}/stop") == "/u/…/…"
    assert masked("/mailbox/sms/+4915112345678") == "/mailbox/sms/…"
    assert masked("/survey/api/customers/ann@example.org") == "/survey/api/customers/…"
    assert masked(f"/survey/customers/{STAFF}") == f"/survey/customers/{STAFF}"
    assert masked("/followup/unconfirmed") == "/followup/unconfirmed"


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (0, "just now"),
        (-5, "5 minutes ago"),
        (1, "in 1 minute"),
        (90, "today 11:30"),
        (-120, "today 08:00"),
        (25 * 60, "tomorrow 11:00"),
        (-24 * 60, "yesterday 10:00"),
        (3 * 24 * 60, "Fri 6 Mar 10:00"),
        (-20 * 24 * 60, "11 Feb"),
        (400 * 24 * 60, "7 Apr 2027"),
    ],
)
def test_times_are_said_in_words_near_now(minutes: int, words: str) -> None:
    now = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)
    assert near(now + timedelta(minutes=minutes), now) == words


def test_a_day_is_one_in_the_readers_zone() -> None:
    zone = ZoneInfo("Asia/Tokyo")
    now = datetime(2026, 3, 3, 14, 0, tzinfo=UTC).astimezone(zone)  # 23:00 in Tokyo
    assert near(now + timedelta(hours=2), now) == "tomorrow 01:00"


def test_numbers_carry_a_true_minus_and_what_belongs_to_them() -> None:
    assert number(1234567) == "1,234,567"
    assert number(-3) == "\N{MINUS SIGN}3"
    assert signed(34) == "+34" and signed(-0.2) == "0" and signed(-5) == "\N{MINUS SIGN}5"
    assert nps(32.4, 6.1, 412) == "+32 ± 6 · n 412"
    assert nps(50, 20, 12) == "too few to tell · n 12"
    assert money("12000.00", "EUR") == "12,000 EUR" and money("0.5") == "0.50" and money(None) == ""
    assert plural(1, "customer") == "1 customer" and plural(1200, "customer") == "1,200 customers"


def test_bands_begin_where_the_design_says() -> None:
    assert [band(score) for score in (0, 6, 7, 8, 9, 10)] == [
        "detractor",
        "detractor",
        "passive",
        "passive",
        "promoter",
        "promoter",
    ]
