"""Tells whoever asks with a login or a key who they are here."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from shared.web.access import ANY_SCOPE, actor, allow


def blueprint(service_name: str) -> Blueprint:
    """`GET /NAME/api/me`: a way to try a key, and for the mailbox to know who is logged in."""
    bp = Blueprint("whoami", __name__, url_prefix=f"/{service_name}/api")

    @bp.get("/me")
    @allow(scope=ANY_SCOPE)
    def me() -> Response:
        who = actor()
        return jsonify(id=who.id, kind=who.kind, name=who.name, role=who.role, scopes=list(who.scopes))

    return bp
