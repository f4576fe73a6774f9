"""Tasks over HTTP: everything the task's page can do, for programs."""

from __future__ import annotations

from typing import Any

from flask_smorest import Blueprint

from services.followup.api import schemas as s
from services.followup.commands import attempts, resolving
from services.followup.queries import tasks
from services.followup.who import by
from shared.errors import Invalid
from shared.ids import is_id
from shared.web import Cursor, allow, idempotent, service

bp = Blueprint("tasks", __name__, url_prefix="/followup/api/tasks", description="Callback tasks.")
_STAFF = ("agent", "lead", "admin")


@bp.route("")
@allow(*_STAFF, scope="tasks:read")
@bp.arguments(s.TaskQuery, location="query")
@bp.response(200, s.TaskList)
def list_tasks(args: dict[str, Any]) -> dict[str, Any]:
    """Lists tasks, newest first. An account manager gets their own and unowned ones."""
    owner = args["owner"]
    if owner == "me":
        owner = by().staff_id or "none"
    elif owner not in (None, "none") and not is_id(owner):
        raise Invalid("This owner is unknown.", fields={"owner": "a staff id, `me` or `none`"})
    with service().db.transaction() as tx:
        rows = tasks.listed(
            tx,
            by(),
            state=args["state"],
            owner=owner,
            overdue=args["overdue"],
            account_id=str(args["account_id"]) if args["account_id"] else None,
            customer_id=str(args["customer_id"]) if args["customer_id"] else None,
            after=Cursor.decode(args["cursor"], 2),
            limit=args["limit"] + 1,
        )
    page = rows[: args["limit"]]
    more = len(rows) > len(page)
    return {
        "tasks": [s.task_json(row) for row in page],
        "next": Cursor.encode(page[-1]["opened_at"].isoformat(), page[-1]["id"]) if more else None,
    }


@bp.route("/<task_id>")
@allow(*_STAFF, scope="tasks:read")
@bp.response(200, s.OneTask)
def get_task(task_id: str) -> dict[str, Any]:
    """Reads a task with its answers and its history."""
    return _one(task_id)


@bp.route("/<task_id>/attempts", methods=["POST"])
@allow(*_STAFF, scope="tasks:write")
@idempotent
@bp.arguments(s.Attempt)
@bp.response(201, s.OneTask)
def record_attempt(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Records one try to reach the customer; the first one, reached or not, is the first contact."""
    with service().db.transaction() as tx:
        attempts.record(tx, by(), task_id, **body)
    return _one(task_id)


@bp.route("/<task_id>/notes", methods=["POST"])
@allow(*_STAFF, scope="tasks:write")
@idempotent
@bp.arguments(s.Note)
@bp.response(201, s.OneTask)
def add_note(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Adds a note, to a closed task too."""
    with service().db.transaction() as tx:
        attempts.note(tx, by(), task_id, **body)
    return _one(task_id)


@bp.route("/<task_id>/assign", methods=["POST"])
@allow(*_STAFF, scope="tasks:write")
@idempotent
@bp.arguments(s.Assign)
@bp.response(200, s.Task)
def assign(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Hands the task over; the new owner hears of it by mail. An account manager may lose sight of it."""
    me = by()
    with service().db.transaction() as tx:
        resolving.assign(tx, me, task_id, **body)
        # What an account manager handed on is read once more for this reply, and not theirs afterwards.
        return s.task_json(tasks.card(tx, type(me)(me.staff_id, me.name), task_id))


@bp.route("/<task_id>/resolve", methods=["POST"])
@allow(*_STAFF, scope="tasks:write")
@idempotent
@bp.arguments(s.Resolve)
@bp.response(200, s.OneTask)
def resolve(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Closes the task with its root cause and its outcome."""
    with service().db.transaction() as tx:
        resolving.resolve(tx, by(), task_id, **body)
    return _one(task_id)


@bp.route("/<task_id>/reopen", methods=["POST"])
@allow(*_STAFF, scope="tasks:write")
@idempotent
@bp.arguments(s.Reopen)
@bp.response(200, s.OneTask)
def reopen(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Opens a closed task again, with a new time to call by."""
    with service().db.transaction() as tx:
        resolving.reopen(tx, by(), task_id, **body)
    return _one(task_id)


def _one(task_id: str) -> dict[str, Any]:
    with service().db.transaction() as tx:
        row = tasks.card(tx, by(), task_id)
        return {
            **s.task_json(row),
            "answers": [s.answer_json(answer) for answer in tasks.answers(tx, task_id)],
            "history": [s.entry_json(entry) for entry in tasks.history(tx, row)],
        }
