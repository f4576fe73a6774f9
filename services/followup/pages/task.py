"""One task: the customer's words, the person, the history, and all an account manager does about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, redirect, render_template, request

from services.followup.commands import attempts, resolving
from services.followup.commands.tasks import ChangedMeanwhile
from services.followup.domain.task import CHANNELS, OUTCOMES
from services.followup.queries import staff, tasks, themes
from services.followup.who import by
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.web import actor, allow, flash, safe_next, service

bp = Blueprint("task", __name__)

_DOING = {
    "attempts": "Record this attempt all the same",
    "resolve": "Resolve it all the same",
    "assign": "Hand it over all the same",
    "reopen": "Reopen it all the same",
}


@bp.get("/followup/tasks/<uuid:task_id>")
@allow("agent", "lead", "admin")
def task_page(task_id: Any) -> Any:
    """The task; on wide screens beside the list it came from."""
    return _page(str(task_id))


@bp.get("/followup/tasks/<uuid:task_id>/state")
@allow("agent", "lead", "admin")
def state(task_id: Any) -> Any:
    """What an open page asks for every few seconds: is somebody on it, did it change?"""
    with service().db.transaction() as tx:
        row = tasks.card(tx, by(), str(task_id))
    other = row["on_it_name"] if row["on_it_id"] != actor().id else None
    return jsonify(version=row["version"], on_it=other, state=row["state"])


@bp.post("/followup/tasks/<uuid:task_id>/start")
@allow("agent", "lead", "admin")
def start(task_id: Any) -> Any:
    """ "I am calling now": shown to everybody else for half an hour."""
    with service().db.transaction() as tx:
        row = attempts.start(tx, by(), str(task_id))
    if request.headers.get("X-Requested-With") == "fetch":
        return jsonify(version=row["version"])
    flash("Colleagues see that you are on it.")
    return redirect(_back(str(task_id)), 303)


@bp.post("/followup/tasks/<uuid:task_id>/attempts")
@allow("agent", "lead", "admin")
def attempt(task_id: Any) -> Any:
    """Records an attempt; the button says whether it reached the customer."""
    form = request.form
    reached = form.get("reached")

    def act(tx: Tx) -> Row:
        if reached not in ("yes", "no"):
            raise Invalid(
                "The attempt was not recorded.", fields={"reached": "Say whether you reached them."}
            )
        return attempts.record(
            tx,
            by(),
            str(task_id),
            channel=form.get("channel", "phone"),
            reached=reached == "yes",
            note=form.get("note"),
            version=_version(),
        )

    return _act(
        str(task_id), "attempts", act, "Recorded: reached." if reached == "yes" else "Recorded: not reached."
    )


@bp.post("/followup/tasks/<uuid:task_id>/notes")
@allow("agent", "lead", "admin")
def note(task_id: Any) -> Any:
    """Adds a note."""

    def act(tx: Tx) -> Row:
        return attempts.note(tx, by(), str(task_id), text=request.form.get("text", ""))

    return _act(str(task_id), "notes", act, "Your note is saved.")


@bp.post("/followup/tasks/<uuid:task_id>/assign")
@allow("agent", "lead", "admin")
def assign(task_id: Any) -> Any:
    """Hands the task to somebody else."""
    form = request.form

    def act(tx: Tx) -> Row:
        return resolving.assign(
            tx, by(), str(task_id), to=form.get("to") or None, why=form.get("why"), version=_version()
        )

    return _act(str(task_id), "assign", act, "The task is handed over.")


@bp.post("/followup/tasks/<uuid:task_id>/resolve")
@allow("agent", "lead", "admin")
def resolve(task_id: Any) -> Any:
    """Closes the task with theme and outcome."""
    form = request.form

    def act(tx: Tx) -> Row:
        return resolving.resolve(
            tx,
            by(),
            str(task_id),
            outcome=form.get("outcome", ""),
            theme=form.get("theme"),
            note=form.get("outcome_note"),
            version=_version(),
        )

    return _act(str(task_id), "resolve", act, "Resolved.")


@bp.post("/followup/tasks/<uuid:task_id>/reopen")
@allow("agent", "lead", "admin")
def reopen(task_id: Any) -> Any:
    """Opens a closed task again."""

    def act(tx: Tx) -> Row:
        return resolving.reopen(tx, by(), str(task_id), why=request.form.get("why"), version=_version())

    return _act(str(task_id), "reopen", act, "The task is open again.")


def detail(tx: Tx, task_id: str) -> dict[str, Any]:
    """What the task side of inbox and task pages shows. Raises `NotFound`."""
    row = tasks.card(tx, by(), task_id)
    found = tasks.answers(tx, task_id)
    people: dict[str, Row] = {}
    for answer in found:
        people.setdefault(answer["customer_id"], answer)
    today = service().clock.now().astimezone(service().zone()).date()
    owners = staff.owners(tx)
    for person in owners:
        away = person["absent_from"] and person["absent_from"] <= today
        person["away"] = bool(away and not (person["absent_until"] and person["absent_until"] < today))
    return {
        "task": row,
        "answers": found,
        "people": list(people.values()),
        "story": tasks.history(tx, row),
        "owners": owners,
        "themes": themes.active(tx),
        "outcomes": list(OUTCOMES.items()),
        "channels": list(CHANNELS.items()),
        "other_on_it": row["on_it_name"] if row["on_it_id"] != actor().id else None,
        "seen": tasks.entries(tx, task_id),
        "form": {},
        "wrong": {},
        "doing": None,
    }


def _page(task_id: str, **more: Any) -> Any:
    # The list's own page knows this one's details: imported late.
    from services.followup.pages.inbox import View, listing

    view = View.of(request.values)
    with service().db.transaction() as tx:
        shown = detail(tx, task_id)
        context = listing(tx, View("all", None, None) if view.name == "unhappy" else view)
    return render_template("followup/task.html", **{**context, **shown, **more}, page="task")


def _act(task_id: str, doing: str, act: Callable[[Tx], Row], done: str) -> Any:
    try:
        with service().db.transaction() as tx:
            row = act(tx)
    except Invalid as error:
        return make_response(
            _page(task_id, form=request.form, wrong=error.fields or {"form": error.message}, doing=doing), 422
        )
    except ChangedMeanwhile:
        return _conflict(task_id, doing)
    except Conflict as error:
        # Closed by somebody: what was typed can still become a note.
        return _conflict(task_id, doing, error.message)
    except NotFound:
        # Handed to somebody else meanwhile, or never there: the same page either way.
        return _conflict(task_id, doing, status=404)
    flash(done)
    mine = by()
    if mine.limited and row["owner_id"] not in (None, mine.staff_id):
        return redirect("/followup/inbox", 303)
    return redirect(_back(task_id), 303)


def _conflict(task_id: str, doing: str, problem: str | None = None, status: int = 409) -> Response:
    """Somebody else was faster: what they did, what one typed, and the choice."""
    with service().db.transaction() as tx:
        try:
            row: Row | None = tasks.card(tx, by(), task_id)
        except NotFound:
            row = None
        missed = tasks.since(tx, task_id, _seen()) if row else []
        seen = tasks.entries(tx, task_id) if row else 0
    kept = {
        name: value
        for name, value in request.form.items()
        if name not in ("csrf_token", "version", "seen") and value
    }
    typed = next((kept[name] for name in ("note", "outcome_note", "why", "text") if kept.get(name)), "")
    page = render_template(
        "followup/conflict.html",
        task=row,
        task_id=task_id,
        missed=missed,
        kept=kept,
        typed=typed,
        doing=doing,
        again=_DOING.get(doing) if row and (row["state"] == "open") == (doing != "reopen") else None,
        problem=problem,
        outcomes=OUTCOMES,
        channels=CHANNELS,
        seen=seen,
    )
    return make_response(page, status)


def _version() -> int | None:
    text = request.form.get("version", "")
    return int(text) if text.isdigit() and len(text) < 18 else None


def _seen() -> int:
    text = request.form.get("seen", "")
    # A program's form may not say: then everything is news.
    return int(text) if text.isdigit() and len(text) < 9 else 0


def _back(task_id: str) -> str:
    from services.followup.pages.inbox import View

    return safe_next(f"/followup/tasks/{task_id}{View.of(request.form).query()}")
