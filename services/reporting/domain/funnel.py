"""The funnel's stages, each defined once: what it counts, of which whole, and in words.

One cohort throughout: the invitations handed over on a day of the period, test messages left out. Every
stage counts how many of *these* came so far, whenever that was, so a stage that says "of …" is contained in
the stage it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """`name` is its column and its name in URLs; `of` is the stage it is a share of and contained in.

    `whole` names it in "51 % of …".
    """

    name: str
    title: str
    of: str | None
    definition: str
    whole: str = ""


STAGES: tuple[Stage, ...] = (
    Stage(
        "asked",
        "Asked",
        None,
        "Invitations handed to the mail or SMS provider in the period. Test messages are left out.",
        "asked",
    ),
    Stage(
        "delivered",
        "Delivered",
        "asked",
        "The provider reported that it arrived, and not later that it bounced; or there is an answer, which "
        "proves it.",
        "delivered",
    ),
    Stage(
        "answered",
        "Answered",
        "delivered",
        "There is an answer that counts: confirmed by a person, neither quarantined nor excluded.",
        "answers",
    ),
    Stage(
        "tasked",
        "Callback task",
        "answered",
        "The answer opened a callback task or joined one, and that task was not withdrawn. "
        "Several answers of one account share a task; each is counted.",
        "those with a task",
    ),
    Stage(
        "in_time",
        "Contacted in time",
        "tasked",
        "The task's first contact that reached the customer was no later than it was due.",
    ),
    Stage("resolved", "Resolved", "tasked", "The task is resolved, in time or late."),
    Stage(
        "told",
        "Told what changed",
        "answered",
        "A notice about a change was handed over because of this answer, and was not reported as bounced or "
        "failed. It needs no task: passives and promoters are told too.",
        "those told",
    ),
    Stage("helped", "It helped", "told", "The customer said that the change helped."),
)

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}

NOTES: tuple[Stage, ...] = (
    Stage(
        "tried_in_time",
        "Tried in time",
        "tasked",
        "There was an attempt to reach the customer no later than the task was due, reached or not.",
    ),
    Stage("not_helped", "It did not help", "told", "The customer said that the change did not help."),
)

COLUMNS: tuple[str, ...] = tuple(stage.name for stage in (*STAGES, *NOTES))
"""The columns of the rollup, and the flags of an invitation."""
