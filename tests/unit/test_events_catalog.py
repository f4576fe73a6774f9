"""The catalog says what may be published, and its document says the same."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.events import asyncapi, catalog, outbox
from shared.events.catalog import TOPICS, TYPES, BadEvent
from shared.events.envelope import Event
from shared.events.fields import instant, plain
from tests.contract.conftest import KEYS, customer, message


def test_the_document_is_what_the_catalog_says() -> None:
    file = Path(__file__).parents[2] / "docs/events.yaml"
    assert file.read_text() == asyncapi.text(), "run `hearback log asyncapi -o docs/events.yaml`"


def test_every_reference_in_the_document_leads_somewhere() -> None:
    whole = yaml.safe_load(asyncapi.text())

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                found = whole
                for part in node["$ref"].removeprefix("#/").split("/"):
                    found = found[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(whole)
    assert set(whole["channels"]) == set(TOPICS)
    assert set(whole["components"]["messages"]) == set(TYPES)


def test_every_type_belongs_to_a_topic_and_every_topic_has_types() -> None:
    assert {kind.topic.name for kind in TYPES.values()} == set(TOPICS)


def test_a_field_too_many_too_few_or_wrong_is_refused_by_name() -> None:
    kind = catalog.event_type("message.received")
    catalog.check(kind, message(KEYS[0], 1))
    for data in (
        {**message(KEYS[0], 1), "mood": "sunny"},
        {name: value for name, value in message(KEYS[0], 1).items() if name != "text"},
        {**message(KEYS[0], 1), "customer_id": "nobody"},
        {**message(KEYS[0], 1), "at": "yesterday"},
        {**message(KEYS[0], 1), "at": "2026-03-03T10:00:00+01:00"},
        {**message(KEYS[0], 1), "channel": "pigeon"},
    ):
        with pytest.raises(BadEvent, match=r"mood|text|customer_id|at|channel"):
            catalog.check(kind, data)


def test_a_refusal_never_repeats_the_value() -> None:
    with pytest.raises(BadEvent) as caught:
        catalog.check(catalog.event_type("customer.changed"), {**customer(KEYS[0]), "id": "ada@example.com"})
    assert "ada" not in str(caught.value)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(BadEvent):
        catalog.event_type("task.forgotten")


def test_ids_follow_from_topic_aggregate_and_version() -> None:
    first = outbox.event_id("responses", KEYS[0], 1)
    assert first == outbox.event_id("responses", KEYS[0], 1)
    others = {
        outbox.event_id("responses", KEYS[0], 2),
        outbox.event_id("responses", KEYS[1], 1),
        outbox.event_id("tasks", KEYS[0], 1),
    }
    assert first not in others and len(others) == 3


def test_values_travel_as_plain_json() -> None:
    at = datetime(2026, 3, 3, 11, 0, tzinfo=timezone(timedelta(hours=1)))
    some = uuid.uuid4()
    assert plain({"at": at, "id": some, "money": Decimal("12.50"), "list": (some,), "none": None}) == {
        "at": "2026-03-03T10:00:00Z",
        "id": str(some),
        "money": "12.50",
        "list": [str(some)],
        "none": None,
    }
    with pytest.raises(ValueError, match="time zone"):
        instant(datetime(2026, 3, 3))


@given(key=st.text(min_size=1))
def test_a_key_has_one_shard(key: str) -> None:
    key = key.encode("utf-8", "replace").decode()
    assert outbox.shard_of(key) == outbox.shard_of(key) < outbox.SHARDS


@given(
    data=st.none() | st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
    version=st.integers(0, 2**63 - 1),
    at=st.datetimes(timezones=st.just(UTC)),
    replay=st.booleans(),
    day=st.none() | st.dates(),
    trace=st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
)
def test_an_event_survives_its_journey(
    data: dict[str, object] | None, version: int, at: datetime, replay: bool, day: None, trace: str
) -> None:
    event = Event("id", "type", "topic", "key", version, at, data, replay, trace, day)
    try:
        value = event.value()
    except UnicodeEncodeError:
        return  # a lone surrogate is no text; it cannot be published
    back = Event.from_record("topic", "key", value, event.headers())
    assert back == event
    assert (back.trace, back.day) == (trace, day)
