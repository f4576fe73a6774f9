"""API of programs and asks."""

from __future__ import annotations

from typing import Any

from flask_smorest import Blueprint
from marshmallow import Schema, fields, validate

from services.survey.commands import ask, programs
from services.survey.pages.asks import run_small
from services.survey.queries import programs as queries
from shared.errors import NotFound
from shared.ids import is_id
from shared.web import actor, allow, idempotent, service

bp = Blueprint("programs-api", __name__, url_prefix="/survey/api", description="Programs, and asking.")

READ, WRITE = "programs:read", "programs:write"
_CHANNEL = validate.OneOf(["email", "sms"])


class Program(Schema):
    """A program and how it does; `nps`, `margin` (in points) and `rate` (0 to 1) are null without answers."""

    id = fields.String()
    version = fields.Integer()
    name = fields.String()
    touchpoint = fields.String()
    channels = fields.List(fields.String(), metadata={"description": "In order of preference."})
    wording = fields.Dict(
        keys=fields.String(), values=fields.Dict(keys=fields.String(), values=fields.String())
    )
    answer_days = fields.Integer()
    state = fields.String(metadata={"description": "active or paused"})
    sent = fields.Integer()
    waiting = fields.Integer()
    answered = fields.Integer()
    rate = fields.Float(allow_none=True)
    nps = fields.Float(allow_none=True)
    margin = fields.Float(allow_none=True)
    n = fields.Integer()
    created_at = fields.DateTime()


class Programs(Schema):
    """All programs."""

    programs = fields.List(fields.Nested(Program))
    next = fields.String(allow_none=True)


class ProgramInput(Schema):
    """What a program is made of; absent fields stay as they are."""

    name = fields.String()
    touchpoint = fields.String()
    channels = fields.List(fields.String(validate=_CHANNEL), validate=validate.Length(1, 2))
    wording = fields.Dict(
        keys=fields.String(),
        values=fields.Dict(keys=fields.String(), values=fields.String()),
        metadata={"description": "By language: subject, question, intro, thanks, sms. Merged."},
    )
    answer_days = fields.Integer(strict=True)
    state = fields.String(validate=validate.OneOf(["active", "paused"]))


class Property(Schema):
    """A property's name and the value it has to have."""

    name = fields.String(required=True)
    value = fields.String(required=True)


class Audience(Schema):
    """Who is asked: `all`, or a list, or a filter (its conditions hold together)."""

    all = fields.Boolean()
    customers = fields.List(
        fields.String(), metadata={"description": "Ids or external ids of customers, at most 10,000."}
    )
    account = fields.String(metadata={"description": "An account's name."})
    touchpoint = fields.String()
    property = fields.Nested(Property)


class AskInput(Schema):
    """An ask. With `dry_run` nobody is asked: the answer says how many would be, and why not the others."""

    audience = fields.Nested(Audience, required=True)
    touchpoint = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Length(1, 80),
        metadata={"description": "Instead of the customer's or the program's."},
    )
    channel = fields.String(load_default=None, allow_none=True, validate=_CHANNEL)
    dry_run = fields.Boolean(load_default=False)


class Ask(Schema):
    """An ask: how far it is. `reasons` counts those skipped so far, by reason."""

    id = fields.String(allow_none=True)
    program_id = fields.String()
    state = fields.String(metadata={"description": "running, done, stopped, or dry_run"})
    total = fields.Integer()
    asked = fields.Integer()
    skipped = fields.Integer()
    channels = fields.Dict(
        keys=fields.String(), values=fields.Integer(), metadata={"description": "Of a dry run."}
    )
    reasons = fields.Dict(keys=fields.String(), values=fields.Integer())
    complete = fields.Boolean(metadata={"description": "Of a dry run: whether all customers were looked at."})
    states = fields.Dict(
        keys=fields.String(), values=fields.Integer(), metadata={"description": "Of its invitations."}
    )
    answered = fields.Integer()
    requested_at = fields.DateTime()
    ended_at = fields.DateTime(allow_none=True)


@bp.get("/programs")
@allow("lead", "admin", scope=READ)
@bp.response(200, Programs)
def programs_list() -> Any:
    """All programs with their figures."""
    with service().db.transaction() as tx:
        return {"programs": queries.programs(tx), "next": None}


@bp.post("/programs")
@allow("lead", "admin", scope=WRITE)
@idempotent
@bp.arguments(ProgramInput)
@bp.response(201, Program)
def programs_create(data: dict[str, Any]) -> Any:
    """A new program; what is not given starts with a default."""
    with service().db.transaction() as tx:
        row = programs.create(tx, data.pop("name", ""), data.pop("touchpoint", programs.DEFAULT_TOUCHPOINT))
        programs.change(tx, str(row["id"]), data)
        return queries.program(tx, str(row["id"])), 201, {"Location": f"/survey/api/programs/{row['id']}"}


@bp.get("/programs/<program_id>")
@allow("lead", "admin", scope=READ)
@bp.response(200, Program)
def programs_get(program_id: str) -> Any:
    """One program, by id."""
    with service().db.transaction() as tx:
        return queries.program(tx, _known(program_id))


@bp.patch("/programs/<program_id>")
@allow("lead", "admin", scope=WRITE)
@idempotent
@bp.arguments(ProgramInput)
@bp.response(200, Program)
def programs_change(data: dict[str, Any], program_id: str) -> Any:
    """Changes what is given; pauses or starts with `state`."""
    with service().db.transaction() as tx:
        programs.change(tx, _known(program_id), data)
        return queries.program(tx, program_id)


@bp.post("/programs/<program_id>/ask")
@allow("lead", "admin", scope=WRITE)
@idempotent
@bp.arguments(AskInput)
@bp.response(202, Ask)
@bp.alt_response(200, schema=Ask, description="The ask is done already, or it was a dry run.")
@bp.alt_response(409, description="The program is paused.")
def programs_ask(data: dict[str, Any], program_id: str) -> Any:
    """Asks an audience, or with `dry_run` counts whom it would reach."""
    where = {"touchpoint": data["touchpoint"], "channel": data["channel"]}
    with service().db.transaction() as tx:
        row = queries.program(tx, _known(program_id))
        if data["dry_run"]:
            return _dry(queries.reach(tx, row, data["audience"], **where), program_id), 200
        started = ask.start(tx, program_id, data["audience"], actor().name, **where)
    run_small(str(started["id"]))
    found = _run(str(started["id"]))
    return (
        found,
        202 if found["state"] == "running" else 200,
        {"Location": f"/survey/api/asks/{started['id']}"},
    )


@bp.get("/asks/<run_id>")
@allow("lead", "admin", scope=READ)
@bp.response(200, Ask)
def asks_get(run_id: str) -> Any:
    """How far an ask is."""
    return _run(run_id)


@bp.post("/asks/<run_id>/stop")
@allow("lead", "admin", scope=WRITE)
@bp.response(200, Ask)
def asks_stop(run_id: str) -> Any:
    """Ends an ask after the batch it is at."""
    if not is_id(run_id):
        raise NotFound("There is no such ask.")
    with service().db.transaction() as tx:
        ask.stop(tx, run_id)
    return _run(run_id)


def _run(run_id: str) -> dict[str, Any]:
    with service().db.transaction() as tx:
        row = queries.run(tx, run_id)
    return row | {"reasons": {found["reason"]: found["count"] for found in row["reasons"]}}


def _dry(found: queries.Reach, program_id: str) -> dict[str, Any]:
    return {
        "id": None,
        "program_id": program_id,
        "state": "dry_run",
        "total": found.total,
        "asked": found.asked,
        "skipped": found.reasons.total(),
        "channels": dict(found.channels),
        "reasons": dict(found.reasons),
        "complete": found.complete,
    }


def _known(program_id: str) -> str:
    if not is_id(program_id):
        raise NotFound("There is no such program.")
    return program_id
