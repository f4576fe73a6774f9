"""The trail: what a customer sees of what became of their answer, in their zone and language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.survey.words import fill, words
from shared.db import Tx


@dataclass(frozen=True, slots=True)
class Told:
    """One change the customer was told of, and what they said to "did it help?"."""

    notice_id: str
    title: str
    was_wrong: str
    is_different: str
    language: str
    helped: bool | None


@dataclass(frozen=True, slots=True)
class Trail:
    """`promised`: followup's promise is there; `lines` are sentences with a kind: 'done', 'open', 'late'."""

    promised: bool
    lines: list[tuple[str, str]] = field(default_factory=list)
    changes: list[Told] = field(default_factory=list)


_TASKS = """SELECT t.data, r.answered_at FROM task_response x JOIN task_replica t ON t.id = x.task_id
    JOIN response r ON r.id = x.response_id WHERE x.response_id = %s
    ORDER BY t.data ->> 'opened_at' DESC"""
_CHANGES = """SELECT n.id, n.data AS notice, c.data AS change FROM notice_replica n
    JOIN change_replica c ON c.id = n.change_id
    WHERE n.response_id = %s AND n.data ->> 'sent_at' IS NOT NULL AND c.data ->> 'withdrawn_at' IS NULL
      AND c.data ->> 'published_at' IS NOT NULL
    ORDER BY n.data ->> 'sent_at' DESC LIMIT 10"""


def trail(tx: Tx, response_id: str, language: str, when: Callable[[datetime], str]) -> Trail:
    """What has become of an answer, by the replicas of followup's tasks, changes and notices.

    `when` writes an instant for this customer.
    """
    tasks = [_since(row["data"], row["answered_at"]) for row in tx.all(_TASKS, (response_id,))]
    told = [
        Told(
            str(row["id"]),
            row["change"]["title"],
            row["change"]["was_wrong"],
            row["change"]["is_different"],
            row["change"]["language"],
            row["notice"].get("helped"),
        )
        for row in tx.all(_CHANGES, (response_id,))
    ]
    shown = next((task for task in tasks if task["state"] != "withdrawn"), None)
    lines = task_lines(shown, tx.now, words(language)["trail"], when) if shown else []
    return Trail(bool(lines), lines, told)


def task_lines(
    task: Mapping[str, Any], now: datetime, said: Mapping[str, str], when: Callable[[datetime], str]
) -> list[tuple[str, str]]:
    """What a task promises and how it was kept, as (kind, sentence)."""
    owner = task["owner_name"]
    team = "" if owner else "_team"

    def say(name: str, at: datetime | None = None) -> str:
        return fill(said[name], owner=owner or "", when=when(at) if at else "")

    due, tried, contacted, resolved, next_call, escalated = (
        _instant(task[name])
        for name in ("due_at", "first_contact_at", "contacted_at", "resolved_at", "call_by", "escalated_at")
    )
    # Only an escalation over this very call reminds the owner of it; nothing is said that is not so.
    reminded = escalated is not None and (next_call is None or escalated >= next_call)
    late = "late" if owner and reminded else "late_team"
    by = next_call or (None if tried or contacted else due)
    lines: list[tuple[str, str]] = []
    if contacted:
        kept = "kept_late" if due is not None and contacted > due else "kept"
        lines.append(("done", say(kept + team, contacted)))
    elif task["state"] == "open" and tried:
        lines.append(("open", say("tried", tried)))
    if task["state"] == "resolved" and resolved:
        lines.append(("done", say("resolved", resolved)))
    elif task["reopened"]:
        lines.append(("open", say("reopened")))
    if task["state"] == "open":
        if task["dont_call"]:
            if not contacted:
                lines.append(("open", say(f"promise_read{team}")))
        elif by is not None:
            lines.append(("late", say(late, by)) if now > by else ("open", say(f"promise{team}", by)))
    return lines


def _since(task: Mapping[str, Any], answered_at: datetime) -> Mapping[str, Any]:
    """A task as far as it concerns this answer: a call before it was a reply to somebody else's."""
    tried = _instant(task["first_contact_at"])
    if tried is None or tried >= answered_at:
        return task
    contacted = _instant(task["contacted_at"])
    heard = contacted is not None and contacted >= answered_at
    return {
        **task,
        "first_contact_at": None,
        "contacted_at": task["contacted_at"] if heard else None,
        "due_at": task["call_by"],
    }


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
