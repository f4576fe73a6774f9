"""API of invitations and answers."""

from __future__ import annotations

from typing import Any

from flask_smorest import Blueprint
from marshmallow import Schema, fields, validate

from services.survey.commands import exclude as commands
from services.survey.domain.bands import band
from services.survey.queries import answers as queries
from shared.errors import NotFound
from shared.ids import is_id
from shared.web import PageArgs, actor, allow, idempotent, service

bp = Blueprint("responses-api", __name__, url_prefix="/survey/api", description="Invitations and answers.")

READ = "responses:read"


class ResponseQuery(PageArgs):
    """Which answers to list; conditions hold together."""

    customer_id = fields.UUID(load_default=None)
    program_id = fields.UUID(load_default=None)
    invitation_id = fields.UUID(load_default=None)
    touchpoint = fields.String(load_default=None)
    state = fields.String(load_default=None, validate=validate.OneOf(["counted", "quarantined", "excluded"]))
    since = fields.AwareDateTime(load_default=None, metadata={"description": "Answered at or after."})
    until = fields.AwareDateTime(load_default=None, metadata={"description": "Answered before."})
    score_min = fields.Integer(load_default=None, validate=validate.Range(0, 10))
    score_max = fields.Integer(load_default=None, validate=validate.Range(0, 10))


class Version(Schema):
    """One version of an answer; none is ever overwritten."""

    version = fields.Integer()
    score = fields.Integer()
    comment = fields.String(allow_none=True)
    callback = fields.String(allow_none=True)
    at = fields.DateTime()
    source = fields.String()


class ResponseSummary(Schema):
    """An answer as it stands. `state`: counted, quarantined (contradicts itself) or excluded (a test)."""

    id = fields.String(attribute="response_id")
    version = fields.Integer()
    invitation_id = fields.String()
    customer_id = fields.String()
    program_id = fields.String()
    program_name = fields.String()
    touchpoint = fields.String()
    channel = fields.String()
    score = fields.Integer()
    band = fields.Function(lambda row: band(row["score"]), metadata={"type": "string"})
    comment = fields.String(allow_none=True)
    callback = fields.String(allow_none=True, metadata={"description": "please, dont or null"})
    source = fields.String()
    state = fields.String()
    state_reason = fields.String(allow_none=True)
    test = fields.Boolean()
    answered_at = fields.DateTime()
    revised_at = fields.DateTime()


class Response(ResponseSummary):
    """An answer with all its versions."""

    versions = fields.List(fields.Nested(Version))


class ResponsePage(Schema):
    """One page of answers; `next` is the cursor of the one after, or null."""

    responses = fields.List(fields.Nested(ResponseSummary))
    next = fields.String(allow_none=True)


class InvitationQuery(PageArgs):
    """Which invitations to list; conditions hold together."""

    customer_id = fields.UUID(load_default=None)
    program_id = fields.UUID(load_default=None)
    ask_id = fields.UUID(load_default=None)
    state = fields.String(load_default=None)
    channel = fields.String(load_default=None)


class Invitation(Schema):
    """One ask of one customer on one channel."""

    id = fields.String()
    customer_id = fields.String()
    program_id = fields.String()
    program_name = fields.String()
    touchpoint = fields.String()
    channel = fields.String()
    state = fields.String(metadata={"description": "queued, sent, failed, skipped, uncertain or expired"})
    test = fields.Boolean()
    delivery_id = fields.String(allow_none=True)
    response_id = fields.String(allow_none=True)
    created_at = fields.DateTime()
    sent_at = fields.DateTime(allow_none=True)
    expires_at = fields.DateTime()


class InvitationPage(Schema):
    """One page of invitations; `next` is the cursor of the one after, or null."""

    invitations = fields.List(fields.Nested(Invitation))
    next = fields.String(allow_none=True)


class Exclusion(Schema):
    """Why an answer does not count."""

    reason = fields.String(required=True)


@bp.get("/responses")
@allow("lead", "admin", scope=READ)
@bp.arguments(ResponseQuery, location="query")
@bp.response(200, ResponsePage)
def responses_list(args: dict[str, Any]) -> Any:
    """Answers, newest first."""
    limit, cursor = args.pop("limit"), args.pop("cursor")
    with service().db.transaction() as tx:
        rows, following = queries.responses(tx, args, limit, cursor)
    return {"responses": rows, "next": following}


@bp.get("/responses/<response_id>")
@allow("lead", "admin", scope=READ)
@bp.response(200, Response)
def responses_get(response_id: str) -> Any:
    """One answer with all its versions."""
    return _read(response_id)


@bp.post("/responses/<response_id>/exclude")
@allow("lead", "admin")
@idempotent
@bp.arguments(Exclusion)
@bp.response(200, Response)
def responses_exclude(data: dict[str, Any], response_id: str) -> Any:
    """Takes an answer out of every count, with a reason; can be undone."""
    with service().db.transaction() as tx:
        commands.exclude(tx, _known(response_id), data["reason"], actor().name)
    return _read(response_id)


@bp.post("/responses/<response_id>/include")
@allow("lead", "admin")
@idempotent
@bp.response(200, Response)
def responses_include(response_id: str) -> Any:
    """Counts an excluded or quarantined answer again."""
    with service().db.transaction() as tx:
        commands.include(tx, _known(response_id), actor().name)
    return _read(response_id)


@bp.get("/invitations")
@allow("lead", "admin", scope=READ)
@bp.arguments(InvitationQuery, location="query")
@bp.response(200, InvitationPage)
def invitations_list(args: dict[str, Any]) -> Any:
    """Invitations, newest first."""
    limit, cursor = args.pop("limit"), args.pop("cursor")
    with service().db.transaction() as tx:
        rows, following = queries.invitations(tx, args, limit, cursor)
    return {"invitations": rows, "next": following}


def _read(response_id: str) -> Any:
    with service().db.transaction() as tx:
        return queries.of_response(tx, response_id)


def _known(response_id: str) -> str:
    if not is_id(response_id):
        raise NotFound("There is no such answer.")
    return response_id
