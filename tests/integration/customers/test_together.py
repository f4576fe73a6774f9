"""Two sessions at once: on one customer, on one account, on a key that both want to create."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from services.survey.commands import customers
from services.survey.domain.rows import Row
from shared.db import Tx
from tests.support.customers import Survey


def at_once(*jobs: Callable[[], object]) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        start.wait()
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def upsert(survey: Survey, rows: Sequence[Row]) -> None:
    customers.retrying(survey.db, lambda tx: customers.upsert(tx, rows, survey.fingerprints))


def test_versions_of_one_customer_rise_by_one_in_the_order_of_their_events(survey: Survey) -> None:
    survey.import_("id,name\n1,Ann\n")
    survey.events()

    def change(session: int) -> None:
        for n in range(15):
            upsert(survey, [Row({"external_id": "1", "name": f"{session}.{n}"})])

    at_once(lambda: change(1), lambda: change(2))
    events = survey.events("customer.changed")
    assert [event["version"] for event in events] == list(range(2, 32))
    assert events[-1]["data"]["name"] == survey.customer(external_id="1")["name"]


def test_an_account_changed_by_two_through_different_customers_keeps_one_history(survey: Survey) -> None:
    survey.import_("id,account\n1,ACME\n2,ACME\n3,Zoo\n4,Zoo\n")
    survey.events()

    def change(mine: str, other: str) -> None:
        for n in range(10):
            # Both touch both accounts, named in opposite orders.
            upsert(
                survey,
                [
                    Row({"external_id": mine, "account": "ACME", "tier": f"{mine}.{n}"}),
                    Row({"external_id": other, "account": "Zoo", "tier": f"{mine}.{n}"}),
                ],
            )

    at_once(lambda: change("1", "3"), lambda: change("2", "4"))
    events = survey.events("customer.changed")
    for name in ("ACME", "Zoo"):
        blocks = {
            event["data"]["account"]["version"]: event["data"]["account"]["tier"]
            for event in events
            if event["data"]["account"]["name"] == name
        }
        account = survey.one("SELECT * FROM account WHERE name = %s", [name])
        assert sorted(blocks) == list(range(2, account["version"] + 1)), "each version was told"
        assert blocks[account["version"]] == account["tier"]
        assert account["version"] == 21


def test_a_customer_that_two_create_at_once_is_one_customer(survey: Survey) -> None:
    for n in range(10):
        at_once(
            lambda n=n: upsert(
                survey, [Row({"external_id": f"{n}", "email": f"{n}@example.com", "account": f"A{n}"})]
            ),  # type: ignore[misc]
            lambda n=n: upsert(
                survey, [Row({"email": f"{n}@example.com", "name": "Ann", "account": f"A{n}"})]
            ),  # type: ignore[misc]
        )
    rows = survey.all("SELECT external_id, name FROM customer ORDER BY external_id")
    assert [(row["external_id"], row["name"]) for row in rows] == [(str(n), "Ann") for n in range(10)]
    assert survey.one("SELECT count(*) AS n FROM account")["n"] == 10


def test_one_who_waits_for_the_lock_sees_what_the_other_wrote(survey: Survey) -> None:
    survey.import_("id,email\n1,ann@example.com\n")
    locked, go = threading.Event(), threading.Event()

    def first() -> None:
        with survey.db.transaction() as tx:
            customers.upsert(tx, [Row({"external_id": "1", "email": "new@example.com"})], survey.fingerprints)
            locked.set()
            go.wait(10)

    outcomes: list[str] = []

    def second() -> None:
        locked.wait(10)

        def command(tx: Tx) -> None:
            threading.Timer(0.2, go.set).start()
            found = customers.upsert(
                tx, [Row({"email": "ann@example.com", "name": "Other"})], survey.fingerprints
            )
            outcomes.append(found[0].effect)

        customers.retrying(survey.db, command)

    at_once(first, second)
    # The address was given up before the second could have it: it is a new customer's.
    assert outcomes[-1] == "created"
    assert survey.customer(external_id="1")["email"] == "new@example.com"
    assert survey.customer(email_key="ann@example.com")["name"] == "Other"
