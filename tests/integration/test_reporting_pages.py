"""Reports: every figure equals the rows behind it, the API says the same, and nobody sees too much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import unescape

import pytest
from flask import Flask

from services.reporting.app import create_app
from services.reporting.handlers import apply
from services.reporting.pages import status
from services.reporting.queries import figures, funnel, scores, surroundings
from services.reporting.queries.figures import FIGURES
from services.reporting.selection import Selection, read
from shared.clock import ManualClock
from shared.db import Database
from shared.ids import SystemIds
from shared.settings import Settings
from tests.support.reporting import PROGRAMS, History
from tests.support.reporting_play import log_in, random_history

Databases = Callable[[str], Database]


@pytest.fixture
def db(database: Databases) -> Database:
    return database("reporting")


@pytest.fixture
def app(settings: Settings, clock: ManualClock, ids: SystemIds, db: Database) -> Iterator[Flask]:
    made = create_app(settings, clock=clock, ids=ids)
    made.testing = True
    yield made
    made.extensions["hearback"].db.close()


def fill(db: Database, seed: int = 3, customers: int = 150) -> None:
    events = random_history(seed, customers)
    with db.transaction() as tx:
        apply(tx, events)


def selections(db: Database, clock: ManualClock) -> list[Selection]:
    today = clock.now().date()
    program = next(iter(PROGRAMS))
    return [
        read({"from": "2026-01-01", "to": "2026-12-31"}, today),
        read({"days": "20"}, today),
        read({"days": "400", "touchpoint": "store"}, today),
        read({"days": "400", "program": program}, today),
        read({"from": "2026-01-10", "to": "2026-02-10", "program": program, "touchpoint": "order"}, today),
    ]


def shown_figures(db: Database, selection: Selection) -> dict[str, int]:
    """Every figure as the report shows it, from the rollups."""
    with db.transaction() as tx:
        loop = funnel.funnel(tx, selection).counts
        score = scores.scores(tx, selection)
        skips = surroundings.skips_by_reason(tx, selection)
    tally = score.total.now.tally
    return dict(loop) | {
        "undelivered": loop["asked"] - loop["delivered"],
        "late": loop["tasked"] - loop["in_time"],
        "unresolved": loop["tasked"] - loop["resolved"],
        "answers": tally.n,
        "promoters": tally.promoters,
        "passives": tally.passives,
        "detractors": tally.detractors,
        "quarantined": score.quarantined,
        "excluded": score.excluded,
        "skipped": sum(count for _, count in skips),
    }


def test_every_figure_equals_the_rows_behind_it(db: Database, clock: ManualClock) -> None:
    fill(db)
    seen_something = set()
    for selection in selections(db, clock):
        shown = shown_figures(db, selection)
        for name, figure in FIGURES.items():
            with db.transaction() as tx:
                count = figures.count(tx, figure, selection)
                assert figures.total(tx, figure, selection) == count, name
                found = figures.rows(tx, figure, selection, limit=10_000)
            assert len(found) == count, name
            assert len({row["id"] for row in found}) == count, name
            if name != "unconfirmed":
                assert shown[name] == count, (name, selection)
            if count:
                seen_something.add(name)
    assert seen_something == set(FIGURES)


def test_rows_come_in_pages_that_together_are_all_of_them(db: Database, clock: ManualClock) -> None:
    fill(db)
    selection = selections(db, clock)[0]
    for figure in FIGURES.values():
        with db.transaction() as tx:
            everything = [row["id"] for row in figures.rows(tx, figure, selection, limit=10_000)]
            paged: list[str] = []
            after = None
            while page := figures.rows(tx, figure, selection, limit=7, after=after):
                paged += [row["id"] for row in page]
                after = (page[-1]["day"], page[-1]["id"])
        assert paged == everything, figure.name


def test_stages_only_narrow_where_they_say_so(db: Database, clock: ManualClock) -> None:
    fill(db)
    for selection in selections(db, clock):
        with db.transaction() as tx:
            found = funnel.funnel(tx, selection)
        for step in found.steps:
            if step.stage.of:
                assert step.count <= found.counts[step.stage.of]


def test_the_funnel_counts_each_stage_of_one_invitation(db: Database, clock: ManualClock) -> None:
    h = History()
    h.company()
    h.programs()
    change = h.change()
    selection = read({"days": "90"}, clock.now().date())

    def stages() -> list[str]:
        with db.transaction() as tx:
            apply(tx, h.events)
            h.events.clear()
            return [name for name, count in funnel.funnel(tx, selection).counts.items() if count]

    customer = h.customer()
    invitation = h.ask(customer)
    assert stages() == ["asked"]
    h.report(invitation, customer, "delivered")
    assert stages() == ["asked", "delivered"]
    h.report(invitation, customer, "bounced")
    assert stages() == ["asked"]
    response = h.answer(invitation, 3)
    assert stages() == ["asked", "delivered", "answered"]
    task = h.task(response)
    h.attempt(task, reached=False)
    assert stages() == ["asked", "delivered", "answered", "tasked", "tried_in_time"]
    h.wait(hours=1)
    h.attempt(task, reached=True)
    h.resolve(task)
    assert {"in_time", "resolved"} <= set(stages())
    notice = h.notice(change, response)
    assert "told" in stages()
    delivery = h.report(notice, customer, "bounced", kind="notice")
    assert "told" not in stages()
    h.report(notice, customer, "delivered", kind="notice", delivery=delivery)
    assert "told" not in stages()  # an older word of the same message
    h.helped(notice, True)
    assert {"told", "helped"} <= set(stages())
    h.exclude(response)
    assert stages() == ["asked"]


def test_test_messages_and_their_answers_are_in_no_figure(db: Database, clock: ManualClock) -> None:
    h = History()
    h.company()
    invitation = h.ask(h.customer(), test=True)
    h.click(invitation, 2)
    h.answer(invitation, 9, state="excluded")
    with db.transaction() as tx:
        apply(tx, h.events)
    shown = shown_figures(db, read({"days": "90"}, clock.now().date()))
    assert shown["excluded"] == 1
    assert sum(shown.values()) == 1
    with db.transaction() as tx:
        assert figures.count(tx, FIGURES["unconfirmed"], read({"days": "90"}, clock.now().date())) == 0


def test_a_click_that_is_answered_later_is_no_longer_unconfirmed(db: Database, clock: ManualClock) -> None:
    h = History()
    h.company()
    invitation = h.ask(h.customer())
    h.click(invitation, 2)
    selection = read({"days": "90"}, clock.now().date())
    with db.transaction() as tx:
        apply(tx, h.events)
        assert figures.count(tx, FIGURES["unconfirmed"], selection) == 1
    h.answer(invitation, 2)
    with db.transaction() as tx:
        apply(tx, h.events[-1:])
        assert figures.count(tx, FIGURES["unconfirmed"], selection) == 0


def test_the_report_links_every_figure_to_as_many_rows(app: Flask, db: Database) -> None:
    fill(db)
    client = log_in(app, "lead")
    page = client.get("/reporting/?days=400")
    assert page.status_code == 200
    html = page.text
    links = set(re.findall(r'href="(/reporting/rows\?[^"]+)"', html))
    assert len(links) > 20
    for link in links:
        rows = client.get(unescape(link))
        assert rows.status_code == 200, link
        heading = re.search(r"<h1>([\d,]+) ", rows.text)
        assert heading, link
        shown = re.search(rf'href="{re.escape(link)}"[^>]*>(.*?)</a>', html, re.DOTALL)
        assert shown
        text = re.sub(r"<[^>]+>", " ", shown[1])
        if not re.search(r"\d+ \w{3} 20\d\d", text):  # a day's link shows the day; its row the count
            assert heading[1] in text, link


def test_rows_lead_to_customers_and_tasks(app: Flask, db: Database) -> None:
    h = History()
    h.company()
    h.programs()
    customer = h.customer("Ada Lovelace")
    task = h.task(h.answer(h.ask(customer), 2, comment="Three weeks, and nobody said why"))
    with db.transaction() as tx:
        apply(tx, h.events)
    html = log_in(app, "lead").get("/reporting/rows?figure=tasked&days=90").text
    assert f'href="/survey/customers/{customer}"' in html
    assert f'href="/followup/tasks/{task}"' in html
    assert "Ada Lovelace" in html and "Three weeks" in html


def test_viewers_see_no_names_and_no_words(app: Flask, db: Database) -> None:
    h = History()
    h.company()
    h.programs()
    account = {
        "id": h.id(),
        "version": 1,
        "name": "Northwind",
        "tier": None,
        "annual_value": None,
        "manager_email": None,
    }
    customer = h.customer("Ada Lovelace", account=account)
    invitation = h.ask(customer)
    h.click(invitation, 4)
    response = h.answer(invitation, 2, comment="Three weeks, and nobody said why")
    h.task(response)
    h.exclude(h.answer(h.ask(customer), 1, comment="A private matter"))
    with db.transaction() as tx:
        apply(tx, h.events)
    client = log_in(app, "viewer")
    assert client.get("/reporting/?days=90").status_code == 200
    for figure in FIGURES:
        html = client.get(f"/reporting/rows?figure={figure}&days=90").text
        for secret in ("Ada", "Northwind", "Three weeks", "private", "a test", "/survey/customers/", "Max"):
            assert secret not in html, (figure, secret)


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("agent", "/reporting/", 403),
        ("agent", "/reporting/rows?figure=asked", 403),
        ("agent", "/reporting/chart.svg", 403),
        ("agent", "/reporting/status", 403),
        ("agent", "/reporting/api/nps", 403),
        ("viewer", "/reporting/", 200),
        ("viewer", "/reporting/status", 403),
        ("lead", "/reporting/status", 200),
        ("admin", "/reporting/status?recount=1", 200),
        ("admin", "/reporting/", 200),
        ("lead", "/reporting/rows?figure=nonsense", 404),
        ("lead", "/reporting/rows?figure=asked&cursor=nonsense", 422),
        ("lead", "/reporting/?from=2026-03-03&to=2026-03-01", 422),
    ],
)
def test_roles_and_bad_input(app: Flask, role: str, path: str, status: int) -> None:
    assert log_in(app, role).get(path).status_code == status


def test_an_empty_installation_says_what_would_be_here(app: Flask) -> None:
    html = log_in(app, "lead").get("/reporting/").text
    assert "Nobody was asked yet" in html
    assert 'href="/survey/programs"' in html


def test_the_chart_is_kept_while_its_content_stays(app: Flask, db: Database) -> None:
    fill(db)
    client = log_in(app, "lead")
    html = client.get("/reporting/?days=60").text
    found = re.search(r'<img src="([^"]+)"', html)
    assert found
    reply = client.get(unescape(found[1]))
    assert reply.mimetype == "image/svg+xml"
    assert "immutable" in reply.headers["Cache-Control"]
    assert client.get("/reporting/chart.svg?days=60").headers["Cache-Control"] == "no-store"
    packed = client.get(unescape(found[1]), headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"


def test_the_api_says_the_same_numbers_to_people_and_keys(
    app: Flask, db: Database, clock: ManualClock
) -> None:
    import hashlib

    fill(db)
    here = app.extensions["hearback"]
    with here.db.transaction() as tx:
        for name, key, scopes in (("reports", "k1", ["reports:read"]), ("other", "k2", ["tasks:read"])):
            tx.execute(
                "INSERT INTO apikey (id, version, name, hash, scopes) VALUES (%s, 1, %s, %s, %s)",
                (here.ids.new(), name, hashlib.sha256(key.encode()).digest(), scopes),
            )
    client = app.test_client()
    bearer = {"Authorization": "Bearer k1"}
    selection = read({"days": "400"}, clock.now().date())
    shown = shown_figures(db, selection)
    loop = client.get("/reporting/api/funnel?days=400", headers=bearer)
    assert loop.status_code == 200
    for stage in loop.get_json()["stages"]:
        assert stage["count"] == shown[stage["stage"]]
    body = client.get("/reporting/api/nps?days=400", headers=bearer).get_json()
    assert body["total"]["n"] == shown["answers"] == sum(day["n"] for day in body["days"])
    assert body["quarantined"] == shown["quarantined"]
    assert body["from"] == "2025-01-28" and body["to"] == "2026-03-03"
    assert client.get("/reporting/api/nps").status_code == 401
    assert client.get("/reporting/api/nps", headers={"Authorization": "Bearer k2"}).status_code == 403
    wrong = client.get("/reporting/api/nps?days=0", headers=bearer)
    assert wrong.status_code == 422 and wrong.mimetype == "application/problem+json"
    described = json.loads(client.get("/reporting/api/openapi.json").text)
    assert {"/reporting/api/nps", "/reporting/api/funnel"} <= set(described["paths"])


def test_the_status_says_what_is_stuck_and_what_to_do(
    app: Flask, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"status": "ready", "log": "ok", "outbox": 0, "parked": 0, "uncertain": 2, "database": "ok"}
    part = status.Part("followup", True, body, {}, ())
    monkeypatch.setattr(status, "_parts", lambda _: [part])
    with db.transaction() as tx:
        tx.execute(
            """INSERT INTO parked_key (consumer, topic, key, parked_at)
               VALUES ('reporting', 'tasks', 'k-1', %s)""",
            (tx.now,),
        )
        tx.execute(
            """INSERT INTO parked (consumer, topic, key, "partition", "offset", headers, reason, parked_at)
               VALUES ('reporting', 'tasks', 'k-1', 0, 1, '{}', 'KeyError: due_at', %s)""",
            (tx.now,),
        )
    html = log_in(app, "admin").get("/reporting/status").text
    assert "k-1" in html and "KeyError: due_at" in html
    assert "hearback log replay" in html
    assert "/survey/uncertain" in html and "2 notices and mails to staff" in html
