"""Permits for followup's sender: the one thing a service asks of another directly."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, jsonify, request
from marshmallow import EXCLUDE, Schema, fields, validate

from services.survey.commands import permits, settle
from services.survey.commands.permits import Request
from services.survey.edge import opt_out_fingerprints
from shared.web import service, service_call

bp = Blueprint("permits", __name__)

MAX_BATCH = 100


class _Request(Schema):
    class Meta:
        unknown = EXCLUDE

    id = fields.UUID(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(["notice"]))
    ref_id = fields.UUID(required=True)
    customer_id = fields.UUID(required=True)
    response_id = fields.UUID(load_default=None, allow_none=True)
    prefer_channel = fields.String(load_default=None, allow_none=True)
    claim = fields.String(load_default=None, allow_none=True, validate=validate.Length(max=100))


class _Result(Schema):
    class Meta:
        unknown = EXCLUDE

    id = fields.UUID(required=True)
    result = fields.String(
        required=True, validate=validate.OneOf(["handed", "failed", "uncertain", "returned"])
    )
    provider_id = fields.String(load_default=None, allow_none=True)
    reason = fields.String(load_default=None, allow_none=True)
    claim = fields.String(load_default=None, allow_none=True)


class _Requests(Schema):
    requests = fields.List(fields.Nested(_Request), required=True, validate=validate.Length(max=MAX_BATCH))


class _Results(Schema):
    results = fields.List(fields.Nested(_Result), required=True, validate=validate.Length(max=MAX_BATCH))


@bp.post("/survey/internal/permits")
@service_call
def take() -> Any:
    """Grants or refuses leave to hand over each of these messages within 15 seconds."""
    data = _Requests().load(request.get_json(force=True))
    wanted = [
        Request(
            str(one["id"]),
            one["kind"],
            str(one["ref_id"]),
            str(one["customer_id"]),
            response_id=str(one["response_id"]) if one["response_id"] else None,
            prefer_channel=one["prefer_channel"],
            claim=one["claim"],
        )
        for one in data["requests"]
    ]
    here = service()
    with here.db.transaction() as tx:
        granted, refused = permits.take(tx, wanted, here.settings.public_url, opt_out_fingerprints())
    return jsonify(
        granted=[
            {
                "id": permit.id,
                "customer_id": permit.customer_id,
                "channel": permit.channel,
                "to": permit.to,
                "name": permit.name,
                "language": permit.language,
                "expires_in": int(permits.LIFETIME.total_seconds()),
                "links": dict(permit.links),
            }
            for permit in granted
        ],
        refused=[{"id": refusal.id, "reason": refusal.reason} for refusal in refused],
    )


@bp.post("/survey/internal/permits/settle")
@service_call
def settled() -> Any:
    """Notes how the hand-overs ended; the same again, and late words on an earlier permit, change nothing."""
    data = _Results().load(request.get_json(force=True))
    results = [
        settle.Result(str(one["id"]), one["result"], one["provider_id"], one["reason"], one["claim"])
        for one in data["results"]
    ]
    with service().db.transaction() as tx:
        settle.notices(tx, results, opt_out_fingerprints())
    return "", 204
