"""Every topic and every type of event: its schema, its key, who publishes it and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, fields

from shared.errors import HearbackError
from shared.events import quick
from shared.events import schemas as s

MAX_BYTES = 256 * 1024


class BadEvent(HearbackError):
    """An event that its own catalog does not allow: a mistake of the publisher."""

    slug = "bad-event"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic; `partitions` is fixed at creation. `key` names what its events are ordered by."""

    name: str
    key: str
    publisher: str
    partitions: int
    compacted: bool
    summary: str


@dataclass(frozen=True, slots=True)
class EventType:
    """A type of event; `aggregate` gives what its version counts when that is not the key."""

    name: str
    topic: Topic
    schema: Schema
    summary: str
    aggregate: Callable[[Mapping[str, Any]], str] | None = None


_TOPICS = (
    Topic("settings", "`company`, or the program's id", "survey", 1, True, "The company and its programs."),
    Topic(
        "customers", "customer id", "survey", 8, True, "Customers, full state; a null value is the erasure."
    ),
    Topic("invitations", "customer id", "survey", 8, False, "Who was asked, and who was not, and why."),
    Topic(
        "responses",
        "customer id",
        "survey",
        8,
        False,
        "Answers, their revisions, and clicks nobody confirmed.",
    ),
    Topic("deliveries", "customer id", "survey", 8, False, "What became of messages, and inbound texts."),
    Topic("tasks", "task id", "followup", 8, False, "Callback tasks, full state each time."),
    Topic("changes", "change id", "followup", 1, False, "What the company changed because of feedback."),
    Topic("notices", "customer id", "followup", 8, False, "Who was told of a change, and whether it helped."),
    Topic(
        "staff", "staff id, or the API key's id", "followup", 1, True, "Who may log in, and API keys by hash."
    ),
)
TOPICS: Mapping[str, Topic] = {topic.name: topic for topic in _TOPICS}


def _by(field: str, prefix: str = "") -> Callable[[Mapping[str, Any]], str]:
    return lambda data: prefix + str(data[field])


def _types() -> list[EventType]:
    def of(
        topic: str, name: str, schema: type[Schema], summary: str, aggregate: Callable[..., str] | None = None
    ) -> EventType:
        return EventType(name, TOPICS[topic], schema(), summary, aggregate)

    task = [
        ("opened", "A detractor answered, and nobody had a task for their account yet."),
        ("joined", "A further answer joined the open task of its account."),
        ("assigned", "The task has another owner."),
        ("attempted", "Somebody tried to reach the customer."),
        ("escalated", "The task was not dealt with in time."),
        ("resolved", "The task is done: theme and outcome are known."),
        ("reopened", "A resolved or withdrawn task is open again."),
        ("withdrawn", "The reason for the task is gone."),
    ]
    invitation, response = _by("invitation_id"), _by("response_id")
    notice, change = _by("notice_id"), _by("change_id")
    return [
        of("settings", "company.changed", s.Company, "The settings that messages and deadlines need."),
        of("settings", "program.changed", s.Program, "A program's wording and state."),
        of("customers", "customer.changed", s.Customer, "A customer's full state; null when erased."),
        of("invitations", "invitation.sent", s.InvitationSent, "An invitation was handed over.", invitation),
        of(
            "invitations",
            "invitation.skipped",
            s.InvitationSkipped,
            "A customer was not asked.",
            _by("skip_id"),
        ),
        of(
            "invitations",
            "invitation.expired",
            s.InvitationExpired,
            "No answer is accepted any more.",
            invitation,
        ),
        of("responses", "response.recorded", s.Response, "A customer answered.", response),
        of("responses", "response.revised", s.Response, "A customer changed their answer.", response),
        of(
            "responses",
            "response.excluded",
            s.ResponseExcluded,
            "An answer was excluded, or that undone.",
            response,
        ),
        of(
            "responses",
            "response.unconfirmed",
            s.ResponseUnconfirmed,
            "A score was clicked in a message and never confirmed.",
            _by("invitation_id", "unconfirmed:"),
        ),
        of(
            "deliveries",
            "delivery.reported",
            s.DeliveryReported,
            "What became of a message.",
            _by("delivery_id"),
        ),
        of(
            "deliveries",
            "message.received",
            s.MessageReceived,
            "A text that answers nothing.",
            _by("message_id"),
        ),
        *(of("tasks", f"task.{name}", s.Task, summary) for name, summary in task),
        of(
            "changes",
            "change.published",
            s.Change,
            "A change is told to those whose words led to it.",
            change,
        ),
        of("changes", "change.withdrawn", s.Change, "A change is told to nobody any more.", change),
        of("notices", "notice.sent", s.NoticeSent, "A customer was told of a change.", notice),
        of("notices", "notice.skipped", s.NoticeSkipped, "A customer was not told of a change.", notice),
        of("notices", "notice.answered", s.NoticeAnswered, "A customer said whether it helped.", notice),
        of("staff", "staff.changed", s.Staff, "A staff member's full state, without password."),
        of("staff", "apikey.changed", s.ApiKey, "An API key's hash and scopes."),
    ]


TYPES: Mapping[str, EventType] = {kind.name: kind for kind in _types()}
_QUICK = {kind.name: quick.compiled(kind.schema) for kind in TYPES.values()}


def event_type(name: str) -> EventType:
    """The type called `name`. Raises `BadEvent` when the catalog has none."""
    try:
        return TYPES[name]
    except KeyError:
        raise BadEvent(f"There is no event type {name!r} in the catalog.") from None


def check(kind: EventType, data: Mapping[str, Any]) -> None:
    """Raises `BadEvent`, naming the fields, when `data` (already plain JSON) is not what its schema says."""
    if _QUICK[kind.name](data):
        return
    problems = kind.schema.validate(dict(data))
    if problems:
        raise BadEvent(f"{kind.name} is not as its schema says: {_first(problems)}")


def _first(problems: Mapping[Any, Any]) -> str:
    # Names fields and rules only; the values may be personal.
    return "; ".join(f"{name}: {what}" for name, what in sorted(problems.items(), key=str))


def field_names(kind: EventType) -> list[str]:
    """The names of the type's fields, in their order."""
    declared: Mapping[str, fields.Field[Any]] = kind.schema.fields
    return list(declared)
