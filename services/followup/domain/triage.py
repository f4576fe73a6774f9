"""Triage: which answers need a call, and what a task does when its answers change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

LOWEST_PASSIVE = 7


class Callback(Enum):
    """What the customer said about being called; most say nothing."""

    PLEASE = "please"
    DONT = "dont"


@dataclass(frozen=True, slots=True)
class Answer:
    """As much of a response as triage looks at. `state` is counted, quarantined or excluded."""

    response_id: str
    customer_id: str
    score: int
    comment: str | None
    callback: Callback | None
    state: str
    answered_at: datetime
    # When the customer last spoke; saying the same once more is not another answer.
    revised_at: datetime = field(compare=False)

    @property
    def needs_call(self) -> bool:
        """A counted detractor, or anybody counted who asks to be called."""
        return self.state == "counted" and (self.score < LOWEST_PASSIVE or self.callback is Callback.PLEASE)

    @property
    def perhaps_unhappy(self) -> bool:
        """A detractor's answer that contradicts itself: it opens no task, yet somebody should look."""
        return self.state == "quarantined" and self.score < LOWEST_PASSIVE


def says_something_new(before: Answer | None, now: Answer) -> bool:
    """Whether the customer spoke again, rather than we having changed how the answer counts."""
    return before is None or (before.score, before.comment, before.callback) != (
        now.score,
        now.comment,
        now.callback,
    )


def turned_worse(before: Answer | None, now: Answer) -> bool:
    """Whether an answer that needs a call did not need one before (or was not there)."""
    return now.needs_call and not (before is not None and before.needs_call)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a task shows of its answers. `lowest_score` is None when none of them counts any more."""

    dont_call: bool
    call_please: bool
    lowest_score: int | None


def wishes(answers: Iterable[Answer]) -> Wishes:
    """The flags of a task: for each customer the last wish they expressed holds, silence changes none."""
    counted = sorted(
        (a for a in answers if a.state == "counted"),
        key=lambda a: (a.revised_at, a.answered_at, a.response_id),
    )
    last: dict[str, Callback] = {}
    for answer in counted:
        if answer.callback is not None:
            last[answer.customer_id] = answer.callback
    return Wishes(
        dont_call=Callback.DONT in last.values(),
        call_please=Callback.PLEASE in last.values(),
        lowest_score=min((a.score for a in counted), default=None),
    )


def should_withdraw(answers: Iterable[Answer], *, contacted: bool) -> bool:
    """Whether an open task has lost its reason: nobody behind it needs a call, and nobody has tried yet.

    Once somebody has called, the conversation has begun and only a person ends it.
    """
    return not contacted and not any(answer.needs_call for answer in answers)
