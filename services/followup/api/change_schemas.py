"""What programs send and get about changes, their audience and their notices."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import OneOf, Range

from services.followup.domain.change import LANGUAGES
from services.followup.queries.changes import COUNTS, NOTICE_STATES, STATES
from shared.db import Row
from shared.events.fields import instant
from shared.web import PageArgs


class _Strict(Schema):
    class Meta:
        unknown = RAISE


class ThemeRef(Schema):
    """A theme by id and name."""

    id = fields.String(required=True)
    name = fields.String(required=True)


class NewChange(_Strict):
    """A draft: what was wrong, what is different now, and whose words led to it."""

    title = fields.String(
        required=True, metadata={"description": "At most 80 characters; the mail's subject."}
    )
    was_wrong = fields.String(required=True)
    is_different = fields.String(required=True)
    language = fields.String(load_default="en", validate=OneOf(list(LANGUAGES)))
    since = fields.Date(
        load_default=None, allow_none=True, metadata={"description": "Answers count since this day."}
    )
    theme_ids = fields.List(fields.UUID(), required=True)


class ChangePatch(_Strict):
    """Fields to change; those left out stay."""

    title = fields.String()
    was_wrong = fields.String()
    is_different = fields.String()
    language = fields.String(validate=OneOf(list(LANGUAGES)))
    since = fields.Date(allow_none=True)
    theme_ids = fields.List(fields.UUID())
    version = fields.Integer(strict=True)


class PublishRequest(_Strict):
    """What was seen before deciding; each part may be left out."""

    version = fields.Integer(
        strict=True, metadata={"description": "The change's version that was previewed."}
    )
    expected = fields.Integer(
        strict=True,
        validate=Range(0),
        metadata={"description": "`reachable` of the audience that was previewed."},
    )


class NoticeCounts(Schema):
    """What became of the notices; `delivered` is part of `sent`."""

    notices = fields.Integer()
    queued = fields.Integer()
    sent = fields.Integer()
    delivered = fields.Integer()
    skipped = fields.Integer()
    failed = fields.Integer()
    uncertain = fields.Integer()
    helped = fields.Integer()
    not_helped = fields.Integer()


class Change(Schema):
    """A change and what became of it."""

    id = fields.String(required=True)
    version = fields.Integer(required=True)
    state = fields.String(required=True, validate=OneOf(STATES))
    title = fields.String(required=True)
    was_wrong = fields.String(required=True)
    is_different = fields.String(required=True)
    language = fields.String(required=True)
    since = fields.String(required=True, allow_none=True)
    themes = fields.List(fields.Nested(ThemeRef), required=True)
    created_at = fields.String(required=True)
    published_at = fields.String(required=True, allow_none=True)
    published_by = fields.String(required=True, allow_none=True)
    withdrawn_at = fields.String(required=True, allow_none=True)
    audience_count = fields.Integer(required=True, allow_none=True)
    counts = fields.Nested(NoticeCounts, required=True)


class ChangeList(Schema):
    """A page of changes."""

    changes = fields.List(fields.Nested(Change), required=True)
    next = fields.String(required=True, allow_none=True)


class ChangeQuery(PageArgs):
    """Which changes."""

    state = fields.String(load_default=None, validate=OneOf(STATES))


class NoticeQuery(PageArgs):
    """Which notices."""

    state = fields.String(load_default=None, validate=OneOf(NOTICE_STATES))


class Why(Schema):
    """Why an answer counts: the theme, and the task it was resolved with, or null when tied directly."""

    theme = fields.String(required=True)
    task_id = fields.String(required=True, allow_none=True)
    by = fields.String(required=True, allow_none=True)


class AudienceCustomer(Schema):
    """A customer of an audience, with the answer that would be quoted."""

    customer_id = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    account = fields.String(required=True, allow_none=True)
    response_id = fields.String(required=True)
    score = fields.Integer(required=True)
    comment = fields.String(required=True, allow_none=True)
    answered_at = fields.String(required=True)
    unreachable = fields.String(required=True, allow_none=True)
    why = fields.List(fields.Nested(Why), required=True)


class Audience(Schema):
    """A page of an audience, and its size."""

    customers = fields.List(fields.Nested(AudienceCustomer), required=True)
    total = fields.Integer(required=True)
    reachable = fields.Integer(required=True)
    unreachable = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    next = fields.String(required=True, allow_none=True)


class Notice(Schema):
    """One notice to one customer."""

    id = fields.String(required=True)
    customer_id = fields.String(required=True)
    response_id = fields.String(required=True)
    state = fields.String(required=True)
    reason = fields.String(required=True, allow_none=True)
    channel = fields.String(required=True, allow_none=True)
    quote = fields.String(required=True, allow_none=True)
    sent_at = fields.String(required=True, allow_none=True)
    delivered_at = fields.String(required=True, allow_none=True)
    helped = fields.Boolean(required=True, allow_none=True)
    helped_at = fields.String(required=True, allow_none=True)


class NoticeList(Schema):
    """A page of notices."""

    notices = fields.List(fields.Nested(Notice), required=True)
    next = fields.String(required=True, allow_none=True)


def change_json(row: Row) -> dict[str, Any]:
    """A row of `queries.changes` as `Change` says it."""
    plain = (
        "id",
        "version",
        "state",
        "title",
        "was_wrong",
        "is_different",
        "language",
        "audience_count",
        "themes",
    )
    times = ("created_at", "published_at", "withdrawn_at")
    return {
        **{name: row[name] for name in plain},
        **{name: _time(row[name]) for name in times},
        "since": row["since"].isoformat() if row["since"] else None,
        "published_by": row["published_by_name"],
        "counts": {name: row[name] for name in COUNTS},
    }


def person_json(row: Row) -> dict[str, Any]:
    """A row of `queries.audience.people` as `AudienceCustomer` says it."""
    return {**row, "answered_at": _time(row["answered_at"]), "why": row["why"] or []}


def notice_json(row: Row) -> dict[str, Any]:
    """A row of `queries.changes.notices` as `Notice` says it."""
    times = ("sent_at", "delivered_at", "helped_at")
    plain = ("id", "customer_id", "response_id", "state", "channel", "quote", "helped")
    return {
        **{name: row[name] for name in plain},
        **{name: _time(row[name]) for name in times},
        "reason": row["skip_reason"],
    }


def _time(value: Any) -> str | None:
    return None if value is None else instant(value)
