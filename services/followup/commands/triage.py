"""Triage: what an answer, a change of mind, an exclusion or an erasure means for callback tasks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from services.followup.commands import owners, replicas, staff_mail, tasks
from services.followup.commands.locks import Subject, lock_subject
from services.followup.domain.deadline import promise
from services.followup.domain.triage import (
    Answer,
    Callback,
    says_something_new,
    should_withdraw,
    turned_worse,
    wishes,
)
from services.followup.queries import company
from shared.db import Row, Tx


def answered(tx: Tx, before: Answer | None, now: Answer, account_id: str | None, version: int) -> None:
    """Acts on `version` of an answer (`before` is the one before it, None for the first).

    The answer is stored already. Opens a task, joins the account's open one, reopens the one the
    answer was behind, updates or withdraws it, or does nothing. Safe to repeat.
    """
    subject = Subject(account_id, now.customer_id)
    lock_subject(tx, subject)
    behind = _behind(tx, now.response_id)
    if behind and behind["state"] == "open":
        _refresh(tx, behind, before, now, version)
        return
    if not now.needs_call:
        return
    if behind and not _comes_back(behind, before, now):
        return
    task = tasks.open_of(tx, subject)
    if task:
        _join(tx, task, before, now)
    elif behind:
        _reopen(tx, behind, now)
    else:
        _open(tx, subject, before, now)


def first_answered(tx: Tx, answers: Sequence[tuple[Answer, str | None, int]]) -> None:
    """As `answered` for many customers' first answers (with account and version), with few statements.

    The caller holds the locks of all their subjects.
    """
    behind = {
        row["response_id"]
        for row in tx.all(
            "SELECT response_id FROM task_response WHERE response_id = ANY(%s::uuid[])",
            ([now.response_id for now, _, _ in answers],),
        )
    }
    calls = [
        (Subject(account, now.customer_id), now)
        for now, account, _ in answers
        if now.needs_call and now.response_id not in behind
    ]
    taken = _with_open_task(tx, [subject for subject, _ in calls])
    alone: list[tuple[Subject, Answer]] = []
    together: list[tuple[Subject, Answer]] = []
    for subject, now in calls:
        who = subject.account_id or subject.customer_id
        (together if who in taken else alone).append((subject, now))
        taken.add(who)
    if alone:
        _open_many(tx, alone)
    for subject, now in together:
        task = tasks.open_of(tx, subject)
        if task:
            _join(tx, task, None, now)
        else:  # resolved while we waited for its lock
            _open_many(tx, [(subject, now)])
    for now, account, version in answers:
        if now.response_id in behind:
            answered(tx, None, now, account, version)


def _with_open_task(tx: Tx, subjects: Sequence[Subject]) -> set[str]:
    """The accounts, and the customers without one, that have an open task."""
    rows = tx.all(
        """SELECT coalesce(account_id, customer_id) AS id FROM task WHERE state = 'open' AND (
               account_id = ANY(%s::uuid[]) OR account_id IS NULL AND customer_id = ANY(%s::uuid[]))""",
        (
            [one.account_id for one in subjects if one.account_id],
            [one.customer_id for one in subjects if not one.account_id],
        ),
    )
    return {row["id"] for row in rows}


def _open_many(tx: Tx, answers: Sequence[tuple[Subject, Answer]]) -> None:
    known = company.settings(tx)
    hours = tasks.hours(known)
    contact_hours = known.get("first_contact_hours", tasks.DEFAULT_CONTACT_HOURS)
    found = owners.Owners(tx)
    managers = owners.managers_of(tx, [one.account_id for one, _ in answers if one.account_id])
    openings = []
    for subject, now in answers:
        person = found.of(managers.get(subject.account_id or ""))
        openings.append(
            tasks.Opening(
                subject,
                now.response_id,
                person.id if person else None,
                now.score,
                promise(hours, _since(tx, None, now), contact_hours),
                dont_call=now.callback is Callback.DONT,
                call_please=now.callback is Callback.PLEASE,
            )
        )
    for task in tasks.open_many(tx, openings):
        staff_mail.about(tx, "opened", task)


def customer_erased(tx: Tx, customer_id: str) -> None:
    """Takes a person out of tasks; to be called while their responses are still there.

    A task with others behind it goes on without them; an open one with nobody left is withdrawn; a
    closed one stays as a fact without a person.
    """
    for task in tx.all(
        """SELECT * FROM task t WHERE customer_id = %(id)s
              OR EXISTS (SELECT 1 FROM task_response WHERE task_id = t.id AND customer_id = %(id)s)
           ORDER BY t.id FOR NO KEY UPDATE OF t""",
        {"id": customer_id},
    ):
        others = tx.all(
            """SELECT DISTINCT customer_id FROM task_response WHERE task_id = %s AND customer_id <> %s
               ORDER BY 1""",
            (task["id"], customer_id),
        )
        if not others:
            # Nobody else can be meant by these notes.
            tx.execute("UPDATE task_entry SET text = NULL WHERE task_id = %s", (task["id"],))
            tx.execute("UPDATE task SET outcome_note = NULL WHERE id = %s", (task["id"],))
        if task["state"] != "open":
            continue
        if not others:
            _withdraw(tx, task, "erased")
            continue
        tx.execute(
            "DELETE FROM task_response WHERE task_id = %s AND customer_id = %s", (task["id"], customer_id)
        )
        answers = _answers(tx, task["id"])
        if answers is not None and should_withdraw(answers, contacted=_contacted(task)):
            _withdraw(tx, task, "erased")
            continue
        first = others[0]["customer_id"] if task["customer_id"] == customer_id else task["customer_id"]
        tasks.save(tx, task["id"], "joined", customer_id=first, **_wishes(task, answers))
    tx.execute("UPDATE task_entry SET text = NULL, customer_id = NULL WHERE customer_id = %s", (customer_id,))


def message_received(tx: Tx, customer_id: str, message_id: str) -> None:
    """A customer wrote without being asked: their open task's owner hears of it at once."""
    for task in tx.all(
        """SELECT t.* FROM task t WHERE t.state = 'open'
              AND EXISTS (SELECT 1 FROM task_response WHERE task_id = t.id AND customer_id = %s)""",
        (customer_id,),
    ):
        if task["owner_id"]:
            staff_mail.queue(
                tx, "message", task["id"], task["owner_id"], {"message_id": message_id}, once=message_id
            )


def _open(tx: Tx, subject: Subject, before: Answer | None, now: Answer) -> None:
    owner = owners.Owners(tx).of(owners.manager_of(tx, subject.account_id))
    task = tasks.insert(
        tx,
        subject,
        owner_id=owner.id if owner else None,
        lowest_score=now.score,
        due=tasks.due(tx, _since(tx, before, now)),
        dont_call=now.callback is Callback.DONT,
        call_please=now.callback is Callback.PLEASE,
    )
    tasks.link(tx, task["id"], now.response_id, now.customer_id)
    task = tasks.save(tx, task["id"], "opened")
    tasks.entry(
        tx, task["id"], "opened", tasks.HEARBACK, response_id=now.response_id, to=_name(tx, task["owner_id"])
    )
    staff_mail.about(tx, "opened", task)


def _join(tx: Tx, task: Row, before: Answer | None, now: Answer) -> None:
    tasks.link(tx, task["id"], now.response_id, now.customer_id)
    saved = tasks.save(
        tx,
        task["id"],
        "joined",
        **_wishes(task, _answers(tx, task["id"])),
        **_call_again(tx, task, before, now),
    )
    tasks.entry(
        tx,
        task["id"],
        "joined",
        tasks.HEARBACK,
        customer_id=now.customer_id,
        response_id=now.response_id,
        score=now.score,
    )
    staff_mail.about(tx, "joined", saved, response_id=now.response_id)


def _reopen(tx: Tx, task: Row, now: Answer) -> None:
    due = tasks.due(tx, tx.now)
    owner_id = task["owner_id"]
    if owner_id is None or not tx.value(
        "SELECT 1 FROM staff WHERE id = %s AND NOT disabled AND role <> 'viewer'", (owner_id,)
    ):
        found = owners.Owners(tx).of(owners.manager_of(tx, task["account_id"]))
        owner_id = found.id if found else None
    saved = tasks.save(
        tx,
        task["id"],
        "reopened",
        state="open",
        owner_id=owner_id,
        reopened=True,
        withdrawn_reason=None,
        resolved_at=None,
        resolved_by=None,
        theme_id=None,
        outcome=None,
        outcome_note=None,
        # Nobody was called, so nothing was kept or broken: the promise begins anew with the new answer.
        due_at=task["due_at"] if _contacted(task) else due.due_at,
        call_by=due.due_at,
        remind_at=due.remind_at,
        **_wishes(task, _answers(tx, task["id"])),
    )
    tasks.entry(
        tx,
        task["id"],
        "reopened",
        tasks.HEARBACK,
        customer_id=now.customer_id,
        response_id=now.response_id,
        score=now.score,
        was=task["state"],
    )
    staff_mail.about(tx, "opened", saved)


def _refresh(tx: Tx, task: Row, before: Answer | None, now: Answer, version: int) -> None:
    """An answer behind an open task has a new version: the task's flags follow, or its reason is gone."""
    answers = _answers(tx, task["id"])
    if answers is not None and should_withdraw(answers, contacted=_contacted(task)):
        _withdraw(tx, task, now.state if now.state != "counted" else "revised")
        return
    changed = _wishes(task, answers)
    if before and now.needs_call and says_something_new(before, now) and now.callback is not Callback.DONT:
        changed |= _call_again(tx, task, before, now)
    if any(task[name] != value for name, value in changed.items()):
        task = tasks.save(tx, task["id"], "joined", **changed)
    if before is None or before == now:
        return
    tasks.entry(
        tx,
        task["id"],
        "revised",
        tasks.HEARBACK,
        customer_id=now.customer_id,
        response_id=now.response_id,
        before=before.score,
        score=now.score,
        state=now.state,
        callback=now.callback.value if now.callback else None,
    )
    if now.state == "counted" and says_something_new(before, now) and task["owner_id"]:
        # One mail per version of the answer: the words often come a minute after the score.
        staff_mail.queue(
            tx,
            "revised",
            task["id"],
            task["owner_id"],
            {"response_id": now.response_id, "version": version, "before": before.score},
            once=f"{task['id']}|{now.response_id}|{version}",
        )


def _withdraw(tx: Tx, task: Row, reason: str) -> None:
    tasks.save(
        tx,
        task["id"],
        "withdrawn",
        state="withdrawn",
        withdrawn_reason=reason,
        call_by=None,
        remind_at=None,
        on_it_id=None,
        on_it_at=None,
    )
    tasks.entry(tx, task["id"], "withdrawn", tasks.HEARBACK, reason=reason)


def _behind(tx: Tx, response_id: str) -> Row | None:
    """The task an answer is behind, locked: the open one, else the last closed one."""
    return tx.one(
        """SELECT t.* FROM task_response tr JOIN task t ON t.id = tr.task_id WHERE tr.response_id = %s
           ORDER BY t.state = 'open' DESC, t.opened_at DESC LIMIT 1 FOR NO KEY UPDATE OF t""",
        (response_id,),
    )


def _comes_back(behind: Row, before: Answer | None, now: Answer) -> bool:
    """Whether an answer whose task is closed wants another call, rather than being heard of twice."""
    if before is None:
        return False
    if says_something_new(before, now):
        return True
    return behind["state"] == "withdrawn" and turned_worse(before, now)


def _call_again(tx: Tx, task: Row, before: Answer | None, now: Answer) -> dict[str, Any]:
    """Somebody has called already, but not about this answer: a call is due again."""
    if task["call_by"] is not None:
        return {}
    due = tasks.due(tx, _since(tx, before, now))
    return {"call_by": due.due_at, "remind_at": due.remind_at if due.remind_at > tx.now else None}


def _since(tx: Tx, before: Answer | None, now: Answer) -> datetime:
    """When the promise of a call begins: when the customer said it, or when we began to count it.

    Never later than now, so that another machine's clock prolongs no promise.
    """
    if before is None:
        said = now.answered_at
    elif says_something_new(before, now):
        said = now.revised_at
    else:
        said = tx.now
    return min(said, tx.now)


def _answers(tx: Tx, task_id: str) -> list[Answer] | None:
    """The answers behind a task; None when some are not there (a replica is being filled): judge nothing."""
    rows = tx.all(
        """SELECT r.*, tr.response_id FROM task_response tr LEFT JOIN response r ON r.id = tr.response_id
           WHERE tr.task_id = %s""",
        (task_id,),
    )
    return None if any(row["id"] is None for row in rows) else [replicas.answer_of(row) for row in rows]


def _wishes(task: Row, answers: list[Answer] | None) -> dict[str, Any]:
    if answers is None:
        return {}
    found = wishes(answers)
    return {
        "dont_call": found.dont_call,
        "call_please": found.call_please,
        "lowest_score": task["lowest_score"] if found.lowest_score is None else found.lowest_score,
    }


def _contacted(task: Row) -> bool:
    return task["first_contact_at"] is not None


def _name(tx: Tx, staff_id: str | None) -> str | None:
    name: str | None = tx.value("SELECT name FROM staff WHERE id = %s", (staff_id,)) if staff_id else None
    return name
