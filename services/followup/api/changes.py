"""Changes over HTTP: everything the pages of changes can do, for programs."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from flask_smorest import Blueprint

from services.followup.api.change_schemas import (
    Audience,
    Change,
    ChangeList,
    ChangePatch,
    ChangeQuery,
    NewChange,
    NoticeList,
    NoticeQuery,
    PublishRequest,
    change_json,
    notice_json,
    person_json,
)
from services.followup.commands import changes as commands
from services.followup.commands import notices as notice_commands
from services.followup.domain.change import Draft
from services.followup.queries import audience
from services.followup.queries import changes as queries
from services.followup.who import by
from shared.db import Row
from shared.errors import NotFound
from shared.web import Cursor, PageArgs, allow, idempotent, service

bp = Blueprint(
    "changes",
    __name__,
    url_prefix="/followup/api/changes",
    description="What was changed, and whom it was told.",
)
_READ: dict[str, Any] = {"scope": "changes:read"}
_WRITE: dict[str, Any] = {"scope": "changes:write"}
_LEADS = ("lead", "admin")


@bp.route("")
class Changes(MethodView):
    """The list of changes, and a new one."""

    @allow(*_LEADS, **_READ)
    @bp.arguments(ChangeQuery, location="query")
    @bp.response(200, ChangeList)
    def get(self, args: dict[str, Any]) -> dict[str, Any]:
        """Lists changes, newest first."""
        with service().db.transaction() as tx:
            rows = queries.listing(
                tx, state=args["state"], limit=args["limit"] + 1, after=queries.after(args["cursor"])
            )
        page = rows[: args["limit"]]
        more = len(rows) > len(page)
        return {
            "changes": [change_json(row) for row in page],
            "next": Cursor.encode(page[-1]["created_at"], page[-1]["id"]) if more else None,
        }

    @allow(*_LEADS, **_WRITE)
    @idempotent
    @bp.arguments(NewChange)
    @bp.response(201, Change)
    def post(self, body: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Saves a draft. Nobody is told before it is published."""
        with service().db.transaction() as tx:
            change_id = commands.create(tx, _draft(body), by())
            change = queries.one(tx, change_id)
        return change_json(change), 201, {"Location": f"/followup/api/changes/{change_id}"}


@bp.route("/<change_id>")
class OneChange(MethodView):
    """One change."""

    @allow(*_LEADS, **_READ)
    @bp.response(200, Change)
    def get(self, change_id: str) -> dict[str, Any]:
        """Reads a change with what became of its notices."""
        with service().db.transaction() as tx:
            return change_json(queries.one(tx, change_id))

    @allow(*_LEADS, **_WRITE)
    @idempotent
    @bp.arguments(ChangePatch)
    @bp.response(200, Change)
    def patch(self, body: dict[str, Any], change_id: str) -> dict[str, Any]:
        """Changes fields of a draft; with `version`, only when nobody else has saved since."""
        with service().db.transaction() as tx:
            known = queries.one(tx, change_id)
            merged = {**known, "theme_ids": [theme["id"] for theme in known["themes"]], **body}
            commands.save(tx, change_id, _draft(merged), body.get("version"))
            return change_json(queries.one(tx, change_id))


@bp.route("/<change_id>/audience")
@allow(*_LEADS, **_READ)
@bp.arguments(PageArgs, location="query")
@bp.response(200, Audience)
def show_audience(args: dict[str, Any], change_id: str) -> dict[str, Any]:
    """Whom publishing would tell now: one answer per customer, and why it counts."""
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        size = audience.size(tx, change)
        people = audience.people(tx, change, after=queries.after_id(args["cursor"]), limit=args["limit"] + 1)
    page = people[: args["limit"]]
    return {
        "customers": [person_json(person) for person in page],
        "total": size.total,
        "reachable": size.reachable,
        "unreachable": size.unreachable,
        "next": Cursor.encode(page[-1]["customer_id"]) if len(people) > len(page) else None,
    }


@bp.route("/<change_id>/publish", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.arguments(PublishRequest)
@bp.response(200, Change)
def publish(body: dict[str, Any], change_id: str) -> dict[str, Any]:
    """Makes a draft known and queues one notice per customer of its audience; cannot be undone.

    A change that is published already is returned as it is: nobody is told twice. With `expected`,
    refused (409) when another number of customers could be reached than that.
    """
    with service().db.transaction() as tx:
        commands.publish(tx, change_id, by(), version=body.get("version"), expected=body.get("expected"))
        return change_json(queries.one(tx, change_id))


@bp.route("/<change_id>/tell-more", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.arguments(PublishRequest)
@bp.response(200, Change)
def tell_more(body: dict[str, Any], change_id: str) -> dict[str, Any]:
    """Tells a published change to those whose earlier answer was tied to its themes since."""
    with service().db.transaction() as tx:
        commands.tell_more(tx, change_id, expected=body.get("expected"))
        return change_json(queries.one(tx, change_id))


@bp.route("/<change_id>/withdraw", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.response(200, Change)
def withdraw(change_id: str) -> dict[str, Any]:
    """Takes a change back; notices that still wait are not sent."""
    return _after(change_id, lambda tx: commands.withdraw(tx, change_id))


@bp.route("/<change_id>/restore", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.response(200, Change)
def restore(change_id: str) -> dict[str, Any]:
    """Makes a withdrawn change that was never published a draft again."""
    return _after(change_id, lambda tx: commands.restore(tx, change_id))


@bp.route("/<change_id>/notices")
@allow(*_LEADS, **_READ)
@bp.arguments(NoticeQuery, location="query")
@bp.response(200, NoticeList)
def list_notices(args: dict[str, Any], change_id: str) -> dict[str, Any]:
    """Lists a change's notices by customer, with what became of each."""
    with service().db.transaction() as tx:
        queries.one(tx, change_id)
        rows = queries.notices(
            tx,
            change_id,
            state=args["state"],
            limit=args["limit"] + 1,
            after=queries.after_id(args["cursor"]),
        )
    page = rows[: args["limit"]]
    return {
        "notices": [notice_json(row) for row in page],
        "next": Cursor.encode(page[-1]["customer_id"]) if len(rows) > len(page) else None,
    }


@bp.route("/<change_id>/notices/<notice_id>/send-again", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.response(204)
def send_again(change_id: str, notice_id: str) -> None:
    """Queues an uncertain notice once more. It may have arrived already: only a person should decide so."""
    with service().db.transaction() as tx:
        if not queries.has_notice(tx, change_id, notice_id):
            raise NotFound("This change has no such notice.")
        notice_commands.send_again(tx, notice_id, by())


def _after(change_id: str, work: Any) -> dict[str, Any]:
    with service().db.transaction() as tx:
        work(tx)
        return change_json(queries.one(tx, change_id))


def _draft(body: dict[str, Any] | Row) -> Draft:
    return Draft(
        body["title"],
        body["was_wrong"],
        body["is_different"],
        body["language"],
        body["since"],
        tuple(str(one) for one in body["theme_ids"]),
    )
