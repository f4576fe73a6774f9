"""The page of themes: added, renamed, retired, brought back."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from services.followup.commands import themes as commands
from services.followup.queries import themes as queries
from shared.errors import HearbackError
from shared.web import allow, flash, service

bp = Blueprint("followup_themes", __name__)
_HERE = "/followup/themes"


@bp.get(_HERE)
@allow("lead", "admin")
def show() -> str:
    return _page()


@bp.post(_HERE)
@allow("lead", "admin")
def add() -> Response | tuple[str, int]:
    name = request.form.get("name", "")
    try:
        with service().db.transaction() as tx:
            theme = commands.add(tx, name)
    except HearbackError as error:
        return _page(error.fields or {"name": error.message}, name), error.status
    flash(f"“{theme['name']}” can be chosen now.")
    return redirect(_HERE, 303)


@bp.post(f"{_HERE}/<theme_id>")
@allow("lead", "admin")
def rename(theme_id: str) -> Response | tuple[str, int]:
    name = request.form.get("name", "")
    try:
        with service().db.transaction() as tx:
            theme = commands.rename(tx, theme_id, name)
    except HearbackError as error:
        if not error.fields:
            raise
        return _page(
            {f"name-{theme_id}": text for text in error.fields.values()}, renamed={theme_id: name}
        ), error.status
    flash(f"The theme is called “{theme['name']}” now.")
    return redirect(_HERE, 303)


@bp.post(f"{_HERE}/<theme_id>/retire")
@allow("lead", "admin")
def retire(theme_id: str) -> Response:
    with service().db.transaction() as tx:
        theme = commands.retire(tx, theme_id)
    flash(f"“{theme['name']}” is retired. What was said under it stays, and you can bring it back.")
    return redirect(_HERE, 303)


@bp.post(f"{_HERE}/<theme_id>/restore")
@allow("lead", "admin")
def restore(theme_id: str) -> Response:
    with service().db.transaction() as tx:
        theme = commands.restore(tx, theme_id)
    flash(f"“{theme['name']}” can be chosen again.")
    return redirect(_HERE, 303)


def _page(wrong: dict[str, str] | None = None, typed: str = "", renamed: dict[str, str] | None = None) -> str:
    with service().db.transaction() as tx:
        themes = queries.every(tx)
    return render_template(
        "followup/themes.html",
        active=[theme for theme in themes if not theme["retired_at"]],
        retired=[theme for theme in themes if theme["retired_at"]],
        wrong=wrong or {},
        typed=typed,
        renamed=renamed or {},
    )
