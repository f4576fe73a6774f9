"""Themes over HTTP: the root causes, and answers tied to one of them."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import RAISE, Schema, fields
from marshmallow.validate import Length

from services.followup.commands import themes as commands
from services.followup.queries import themes as queries
from services.followup.who import by
from shared.db import Row
from shared.web import allow, idempotent, service

bp = Blueprint("themes", __name__, url_prefix="/followup/api/themes", description="Root causes.")
_READ: dict[str, Any] = {"scope": "changes:read"}
_WRITE: dict[str, Any] = {"scope": "changes:write"}
_LEADS = ("lead", "admin")


class Theme(Schema):
    """A root cause; a retired one cannot be chosen any more."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    retired = fields.Boolean(required=True)


class ThemeList(Schema):
    """All themes, those in use first."""

    themes = fields.List(fields.Nested(Theme), required=True)


class NewTheme(Schema):
    """A theme's name."""

    class Meta:
        unknown = RAISE

    name = fields.String(required=True)


class ThemePatch(Schema):
    """A new name, or whether it is retired."""

    class Meta:
        unknown = RAISE

    name = fields.String()
    retired = fields.Boolean()


class Ties(Schema):
    """Answers by id."""

    class Meta:
        unknown = RAISE

    response_ids = fields.List(fields.UUID(), required=True, validate=Length(1, 500))


@bp.route("")
class Themes(MethodView):
    """The list of themes, and a new one."""

    @allow("agent", *_LEADS, **_READ)
    @bp.response(200, ThemeList)
    def get(self) -> dict[str, Any]:
        """Lists all themes."""
        with service().db.transaction() as tx:
            return {"themes": [_json(row) for row in queries.every(tx)]}

    @allow(*_LEADS, **_WRITE)
    @idempotent
    @bp.arguments(NewTheme)
    @bp.response(201, Theme)
    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Adds a theme, or brings back a retired one of that name."""
        with service().db.transaction() as tx:
            return _json(commands.add(tx, body["name"]))


@bp.route("/<theme_id>", methods=["PATCH"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.arguments(ThemePatch)
@bp.response(200, Theme)
def change(body: dict[str, Any], theme_id: str) -> dict[str, Any]:
    """Renames a theme, retires it, or brings it back."""
    with service().db.transaction() as tx:
        row = queries.one(tx, theme_id)
        if "name" in body:
            row = commands.rename(tx, theme_id, body["name"])
        if "retired" in body:
            row = (commands.retire if body["retired"] else commands.restore)(tx, theme_id)
        return _json(row)


@bp.route("/<theme_id>/answers", methods=["POST"])
@allow(*_LEADS, **_WRITE)
@idempotent
@bp.arguments(Ties)
@bp.response(204)
def tie(body: dict[str, Any], theme_id: str) -> None:
    """Ties answers to the theme without a task. Those tied already stay so."""
    with service().db.transaction() as tx:
        commands.tie(tx, theme_id, [str(one) for one in body["response_ids"]], by().staff_id)


@bp.route("/<theme_id>/answers/<response_id>", methods=["DELETE"])
@allow(*_LEADS, **_WRITE)
@bp.response(204)
def untie(theme_id: str, response_id: str) -> None:
    """Takes an answer out again."""
    with service().db.transaction() as tx:
        commands.untie(tx, theme_id, response_id)


def _json(row: Row) -> dict[str, Any]:
    return {"id": row["id"], "name": row["name"], "retired": row["retired_at"] is not None}
