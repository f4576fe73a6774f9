"""What may be appended, and what becomes of it."""

from __future__ import annotations

import pytest

from shared.events import outbox
from shared.events.catalog import BadEvent
from shared.events.envelope import encode
from tests.contract.conftest import KEYS, Bench, customer, message

A, B = KEYS[0], KEYS[1]


def test_an_event_of_a_transaction_that_fails_was_never_appended(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), bench.owner.transaction() as tx:
        bench.append(tx, A, 1)
        raise ZeroDivisionError
    assert bench.waiting() == 0


def test_many_events_are_appended_in_their_order(bench: Bench) -> None:
    with bench.owner.transaction() as tx:
        ids = outbox.append_many(tx, [("message.received", A, 1, message(A, number)) for number in range(5)])
    bench.flush()
    assert [entry.headers["id"] for entry in bench.on_log("deliveries")] == ids


def test_an_event_above_256_kilobytes_is_refused(bench: Bench) -> None:
    with bench.owner.transaction() as tx:
        spare = 256 * 1024 - len(encode(message(A, 1, "")))
        bench.append(tx, A, 1, "x" * spare)
        with pytest.raises(BadEvent, match="262,145 bytes"):
            bench.append(tx, A, 2, "x" * (spare + 1))
        with pytest.raises(BadEvent):
            bench.append(tx, A, 2, "ü" * (spare // 2 + 1))


def test_only_a_customer_is_erased_and_every_event_has_a_key(bench: Bench) -> None:
    with bench.owner.transaction() as tx:
        with pytest.raises(BadEvent):
            outbox.append(tx, "message.received", A, 1, None)
        with pytest.raises(BadEvent):
            outbox.append(tx, "customer.changed", "", 1, customer(A))


def test_what_a_version_counts_decides_the_id(bench: Bench) -> None:
    data = message(A, 7)
    with bench.owner.transaction() as tx:
        by_catalog = outbox.append(tx, "message.received", A, 1, data)
        by_hand = outbox.append(tx, "message.received", A, 1, data, aggregate=data["message_id"])
        other = outbox.append(tx, "message.received", A, 1, data, aggregate="another")
    assert by_catalog == by_hand != other


def test_an_erasure_has_headers_and_no_value(bench: Bench) -> None:
    bench.erase(A, 3)
    bench.flush()
    [entry] = bench.on_log("customers")
    assert entry.value is None
    assert (entry.headers["type"], entry.headers["version"]) == ("customer.changed", "3")
