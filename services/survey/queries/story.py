"""One customer's whole story, both directions: what we sent, what they said, what was done about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shared.db import Row, Tx
from shared.web.filters import instant

PAGE = 60

Entry = dict[str, Any]

# What comes after what of one instant: a message leaves and is settled in one, a call reaches and resolves.
_ORDER = (
    "created skip invitation click text answer task_opened task_escalated task_tried task_reached"
    " task_resolved task_withdrawn notice notice_skipped delivery helped complaint opt_out"
).split()

_SOURCES = {
    "invitation": """SELECT i.id, i.state, i.channel, i.touchpoint, i.test, i.sent_at, i.created_at,
            p.id AS program_id, p.name AS program, coalesce(i.sent_at, i.created_at) AS at, i.expires_at
        FROM invitation i JOIN program p ON p.id = i.program_id WHERE i.customer_id = %(id)s""",
    "skip": """SELECT s.id, s.reason, s.at, s.touchpoint, p.id AS program_id, p.name AS program
        FROM skip s JOIN program p ON p.id = s.program_id WHERE s.customer_id = %(id)s""",
    "answer": """SELECT r.id, v.version, v.score, v.comment, v.callback, v.at, v.source, r.state,
            r.state_reason, r.state_by, p.name AS program, i.touchpoint, i.channel, i.test,
            lag(v.score) OVER (PARTITION BY r.id ORDER BY v.version) AS score_before,
            (SELECT max(w.version) FROM response_version w WHERE w.response_id = r.id) AS last_answer
        FROM response r JOIN response_version v ON v.response_id = r.id
        JOIN invitation i ON i.id = r.invitation_id JOIN program p ON p.id = i.program_id
        WHERE r.customer_id = %(id)s""",
    "delivery": """SELECT d.id, d.kind AS kind_of, d.channel, d.state, d.reason, d.ref_id,
            -- A notice is sent by followup's clock; what became of it cannot come before.
            greatest(coalesce(d.settled_at, d.handed_at, d.claimed_at, d.created_at),
                (n.data->>'sent_at')::timestamptz) AS at
        FROM delivery d LEFT JOIN notice_replica n
            ON n.customer_id = d.customer_id AND n.data->>'delivery_id' = d.id::text
        WHERE d.customer_id = %(id)s
            AND d.state IN ('delivered', 'bounced', 'failed', 'uncertain', 'refused')""",
    "complaint": """SELECT d.id, d.kind AS kind_of, d.channel, (d.data->>'complained_at')::timestamptz AS at
        FROM delivery d WHERE d.customer_id = %(id)s AND d.data ? 'complained_at'""",
    "text": """SELECT b.id, b.channel, b.text, b.effect, b.at FROM inbound b WHERE b.customer_id = %(id)s""",
    "click": """SELECT k.id, k.score, k.at, p.name AS program
        FROM click k JOIN invitation i ON i.id = k.invitation_id JOIN program p ON p.id = i.program_id
        WHERE i.customer_id = %(id)s AND k.reported""",
}


def story(
    tx: Tx, customer: Mapping[str, Any], before: datetime | None = None
) -> tuple[list[Entry], datetime | None]:
    """Entries newest first, each with `kind` and `at`; and from when to go on, when there is more.

    `before` is what the page before returned. Entries of one instant stay together.
    """
    entries: list[Entry] = []
    for kind, sql in _SOURCES.items():
        rows = tx.all(
            f"SELECT * FROM ({sql}) s WHERE (%(before)s::timestamptz IS NULL OR at < %(before)s::timestamptz)"  # noqa: S608
            " ORDER BY at DESC LIMIT %(limit)s",
            {"id": customer["id"], "before": before, "limit": PAGE + 1},
        )
        entries += [{"kind": kind, **row} for row in rows]
    entries += [entry for entry in _replicas(tx, customer) if before is None or entry["at"] < before]
    entries.sort(
        key=lambda entry: (entry["at"], _ORDER.index(entry["kind"]), entry.get("version", 0)), reverse=True
    )
    if len(entries) <= PAGE:
        return entries, None
    cut: datetime = entries[PAGE]["at"]
    kept = [entry for entry in entries if entry["at"] > cut]
    if not kept:  # all of one instant: better a long page than one that never ends
        return [entry for entry in entries if entry["at"] >= cut], cut
    return kept, kept[-1]["at"]


def _replicas(tx: Tx, customer: Mapping[str, Any]) -> list[Entry]:
    """What followup did, as its events told; a task's or a notice's few milestones each."""
    entries = [
        {"kind": kind, "task_id": row["id"], "at": at, **extra}
        for row in tx.all(
            "SELECT id, data FROM task_replica WHERE data->'customer_ids' @> to_jsonb(%s::text)",
            (customer["id"],),
        )
        for kind, at, extra in _milestones(row["data"])
    ]
    for row in tx.all(
        "SELECT n.id, n.data, c.data->>'title' AS title FROM notice_replica n"
        " LEFT JOIN change_replica c ON c.id = n.change_id WHERE n.customer_id = %s",
        (customer["id"],),
    ):
        data = row["data"]
        shared = {"notice_id": row["id"], "title": row["title"] or "a change", "quote": data.get("quote")}
        sent, skipped, helped = (
            instant(data.get("sent_at")),
            data.get("reason"),
            instant(data.get("helped_at")),
        )
        if sent:
            entries.append({"kind": "notice", "at": sent, "channel": data.get("channel"), **shared})
        elif skipped:
            entries.append({"kind": "notice_skipped", "at": instant(data["at"]), "reason": skipped, **shared})
        if helped:
            entries.append({"kind": "helped", "at": helped, "helped": data.get("helped"), **shared})
    for channel in ("email", "sms"):
        for what in ("opt_out", "bounced"):
            at = customer[f"{channel}_{what}_at"]
            if at and what == "opt_out":
                entries.append({"kind": "opt_out", "at": at, "channel": channel})
    entries.append({"kind": "created", "at": customer["created_at"]})
    return entries


_Milestones = list[tuple[str, Any, Row]]


def _milestones(task: Mapping[str, Any]) -> _Milestones:
    owner = {"owner": task.get("owner_name")}
    found: _Milestones = []

    def add(kind: str, at: Any, **extra: Any) -> None:
        if at:
            found.append((kind, instant(at), {**owner, **extra}))

    add("task_opened", task["opened_at"], due_at=task["due_at"], score=task["lowest_score"])
    if task.get("first_contact_at") != task.get("contacted_at"):
        add("task_tried", task.get("first_contact_at"))
    add("task_reached", task.get("contacted_at"))
    add("task_escalated", task.get("escalated_at"))
    add("task_resolved", task.get("resolved_at"), theme=task.get("theme"), outcome=task.get("outcome"))
    if task["state"] == "withdrawn":
        add("task_withdrawn", task["at"], reason=task.get("withdrawn_reason"))
    return found


def open_task(tx: Tx, customer: Mapping[str, Any]) -> Row | None:
    """The open task that this customer, or their account, is waiting in."""
    return tx.one(
        "SELECT id, data FROM task_replica WHERE data->>'state' = 'open'"
        " AND (data->'customer_ids' @> to_jsonb(%s::text) OR account_id = %s) LIMIT 1",
        (customer["id"], customer["account_id"]),
    )
