"""Every figure that a report shows, and the rows behind it: one definition gives both.

A figure is a condition on one kind of fact within the selected days, program and touchpoint. Its count can
come from a rollup; the count of its rows is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from services.reporting.domain.funnel import NOTES, STAGES
from services.reporting.selection import Selection
from shared.db import Row, Tx

Kind = Literal["invitation", "response", "unconfirmed", "skip"]


@dataclass(frozen=True, slots=True)
class Figure:
    """`one` and `many` head its rows: "1 answer with …", "12 answers with …"; `condition` is SQL on the fact,
    which is called `f`. `total` gives the same count from a rollup, in SQL."""

    name: str
    title: str
    one: str
    many: str
    kind: Kind
    condition: str
    definition: str
    total: str | None = None


_HEADS = {
    "asked": ("invitation", "invitations", ""),
    "delivered": ("invitation", "invitations", " delivered"),
    "undelivered": ("invitation", "invitations", " not delivered"),
    "answered": ("invitation", "invitations", " answered"),
    "tasked": ("answer", "answers", " with a callback task"),
    "in_time": ("answer", "answers", " with the customer contacted in time"),
    "tried_in_time": ("answer", "answers", " with an attempt in time"),
    "late": ("answer", "answers", " with the customer not contacted in time"),
    "resolved": ("answer", "answers", " with the callback resolved"),
    "unresolved": ("answer", "answers", " with the callback not resolved yet"),
    "told": ("answer", "answers", " whose customer was told what changed"),
    "helped": ("answer", "answers", " whose customer said that it helped"),
    "not_helped": ("answer", "answers", " whose customer said that it did not help"),
}
_GAPS = (
    ("undelivered", "Not delivered", "asked", "delivered", "Handed over, but nothing says that it arrived."),
    (
        "late",
        "Not contacted in time",
        "tasked",
        "in_time",
        "Nobody reached the customer before it was due, or has yet.",
    ),
    ("unresolved", "Not resolved yet", "tasked", "resolved", "The callback task is still open."),
)


def _of_funnel() -> list[Figure]:
    found = [
        _on_invitation(stage.name, stage.title, f"f.{stage.name}", stage.definition, stage.name)
        for stage in (*STAGES, *NOTES)
    ]
    for name, title, whole, part, definition in _GAPS:
        found.append(
            _on_invitation(name, title, f"f.{whole} AND NOT f.{part}", definition, f"{whole} - {part}")
        )
    return found


def _on_invitation(name: str, title: str, condition: str, definition: str, total: str) -> Figure:
    one, many, rest = _HEADS[name]
    return Figure(name, title, one + rest, many + rest, "invitation", condition, definition, total)


_FIGURES = (
    *_of_funnel(),
    Figure(
        "answers",
        "Answers",
        "answer",
        "answers",
        "response",
        "f.state = 'counted'",
        "Answers given in the period that count, each in its current version. Without those that are "
        "quarantined or excluded.",
        "promoters + passives + detractors",
    ),
    *(
        Figure(
            f"{band}s",
            f"{band.capitalize()}s",
            band,
            f"{band}s",
            "response",
            f"f.state = 'counted' AND f.band = '{band}'",
            f"Answers with a score of {scores} given in the period, each in its current version.",
            f"{band}s",
        )
        for band, scores in (("promoter", "9 or 10"), ("passive", "7 or 8"), ("detractor", "0 to 6"))
    ),
    Figure(
        "quarantined",
        "Quarantined answers",
        "quarantined answer",
        "quarantined answers",
        "response",
        "f.state = 'quarantined'",
        "Answers that contradict themselves: several scores of one message within seconds, or a form that "
        "only machines see. They count nowhere else.",
        "quarantined",
    ),
    Figure(
        "excluded",
        "Excluded answers",
        "excluded answer",
        "excluded answers",
        "response",
        "f.state = 'excluded'",
        "Answers that somebody took out, with a reason, and answers to test messages. They count nowhere "
        "else.",
        "excluded",
    ),
    Figure(
        "unconfirmed",
        "Unconfirmed clicks",
        "click that nobody confirmed",
        "clicks that nobody confirmed",
        "unconfirmed",
        "NOT EXISTS (SELECT 1 FROM response r WHERE r.invitation_id = f.invitation_id AND r.version > 0) "
        "AND NOT EXISTS (SELECT 1 FROM invitation i WHERE i.id = f.invitation_id AND i.test)",
        "A score was opened from a message and no person confirmed it within 15 minutes, nor later.",
    ),
    Figure(
        "skipped",
        "Not asked",
        "decision not to ask",
        "decisions not to ask",
        "skip",
        "true",
        "Decisions not to ask a customer, with their reason.",
    ),
)
FIGURES: Mapping[str, Figure] = {figure.name: figure for figure in _FIGURES}

# Per kind: the fact with its key, and what its row shows. Names and words are left out for those who may
# not see them (`who`).
_SELECT: dict[Kind, tuple[str, str]] = {
    "invitation": (
        "id",
        """SELECT f.id, f.day, f.sent_at AS at, f.customer_id, f.program_id, f.touchpoint, f.channel,
                  f.delivered, r.score, r.comment, r.account_name, t.id AS task_id, t.state AS task_state,
                  t.owner_name, t.due_at, t.contacted_at, t.resolved_at, t.theme,
                  f.told, f.helped, f.not_helped, NULL AS reason,
                  (SELECT ch.title FROM notice n JOIN change ch ON ch.id = n.change_id
                   WHERE n.id = f.notice_id) AS change_title
           FROM page f LEFT JOIN response r ON r.id = f.response_id LEFT JOIN task t ON t.id = f.task_id""",
    ),
    "response": (
        "id",
        """SELECT f.id, f.day, f.answered_at AS at, f.customer_id, f.program_id, f.touchpoint, f.channel,
                  NULL::boolean AS delivered, f.score, f.comment, f.account_name, t.id AS task_id,
                  t.state AS task_state, t.owner_name, t.due_at, t.contacted_at, t.resolved_at, t.theme,
                  i.told, i.helped, i.not_helped, f.reason,
                  (SELECT ch.title FROM notice n JOIN change ch ON ch.id = n.change_id
                   WHERE n.id = i.notice_id) AS change_title
           FROM page f LEFT JOIN invitation i ON i.id = f.invitation_id AND i.response_id = f.id
           LEFT JOIN task t ON t.id = i.task_id""",
    ),
    "unconfirmed": (
        "invitation_id",
        """SELECT f.invitation_id AS id, f.day, f.clicked_at AS at, f.customer_id, f.program_id, f.touchpoint,
                  f.channel, f.score, NULL AS comment, f.account_name FROM page f""",
    ),
    "skip": (
        "id",
        """SELECT f.id, f.day, f.at, f.customer_id, f.program_id, f.touchpoint, NULL AS channel, f.reason,
                  NULL AS account_name FROM page f""",
    ),
}


def total(tx: Tx, figure: Figure, selection: Selection) -> int:
    """The figure, from a rollup where there is one: as the report shows it, however many rows there are."""
    if figure.total is None:
        return count(tx, figure, selection)
    where, values = selection.where()
    table = "nps_day" if figure.kind == "response" else "funnel_day"
    return int(
        tx.value(f"SELECT coalesce(sum({figure.total}), 0) FROM {table} WHERE {where}", values)  # noqa: S608
    )


def count(tx: Tx, figure: Figure, selection: Selection) -> int:
    """How many rows are behind the figure, counted one by one."""
    where, values = _where(figure, selection)
    return int(tx.value(f"SELECT count(*) FROM {figure.kind} f WHERE {where}", values))  # noqa: S608


def rows(
    tx: Tx,
    figure: Figure,
    selection: Selection,
    *,
    limit: int,
    after: tuple[date, str] | None = None,
    names: bool = True,
) -> list[Row]:
    """Rows behind the figure, newest day first, at most `limit`, those after `after` (day, id).

    Without `names` the rows tell nothing about who it was: no name, no account, no words.
    """
    where, values = _where(figure, selection)
    key, select = _SELECT[figure.kind]
    if after:
        where += f" AND (f.day, f.{key}) < (%(after_day)s::date, %(after_id)s::uuid)"
        values |= {"after_day": after[0], "after_id": after[1]}
    found = tx.all(
        f"""WITH page AS (
                SELECT f.* FROM {figure.kind} f WHERE {where}
                ORDER BY f.day DESC, f.{key} DESC LIMIT %(limit)s
            ),
            shown AS ({select})
            SELECT shown.*, c.name AS customer_name, coalesce(shown.account_name, c.account_name) AS account,
                   p.name AS program_name
            FROM shown LEFT JOIN customer c ON c.id = shown.customer_id
            LEFT JOIN program p ON p.id = shown.program_id
            ORDER BY shown.day DESC, shown.id DESC""",  # noqa: S608 - our own text
        values | {"limit": limit},
    )
    if names:
        return found
    hidden = {"customer_name", "account", "account_name", "comment", "owner_name"}
    if figure.kind == "response":  # staff wrote it, about a person
        hidden.add("reason")
    return [{name: None if name in hidden else value for name, value in row.items()} for row in found]


def _where(figure: Figure, selection: Selection) -> tuple[str, dict[str, Any]]:
    where, values = selection.where("f.day")
    known = (
        " AND f.version > 0"
        if figure.kind == "response"
        else " AND f.asked"
        if figure.kind == "invitation"
        else ""
    )
    return f"{where}{known} AND {figure.condition}", values
