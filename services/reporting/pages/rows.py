"""The rows behind a figure, page by page, each leading to the customer and the task."""

from __future__ import annotations

from datetime import date
from typing import Any

from flask import Blueprint, render_template, request

from services.reporting.pages.report import today
from services.reporting.queries import figures, surroundings
from services.reporting.queries.figures import FIGURES
from services.reporting.selection import read
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web import Cursor, actor, allow, page_args, service

bp = Blueprint("rows", __name__)


@bp.get("/reporting/rows")
@allow("lead", "admin", "viewer")
def show() -> str:
    """As many rows as the figure says; viewers see no names and no words."""
    figure = FIGURES.get(request.args.get("figure", ""))
    if figure is None:
        raise NotFound("There is no such figure. Start from the report and open one there.")
    selection = read(request.args, today())
    page: dict[str, Any] = page_args.load(request.args)
    names = actor().role != "viewer"
    with service().db.transaction() as tx:
        total = figures.total(tx, figure, selection)
        found = figures.rows(
            tx, figure, selection, limit=page["limit"] + 1, after=_after(page["cursor"]), names=names
        )
        programs = dict(surroundings.programs(tx))
    shown = found[: page["limit"]]
    query = {"figure": figure.name, "limit": page["limit"] if "limit" in request.args else None}
    next_url = None
    if len(found) > len(shown):
        cursor = Cursor.encode(shown[-1]["day"].isoformat(), str(shown[-1]["id"]))
        next_url = f"/reporting/rows?{selection.query(**query, cursor=cursor)}"
    return render_template(
        "reporting/rows.html",
        figure=figure,
        s=selection,
        total=total,
        rows=shown,
        names=names,
        program=programs.get(selection.program or ""),
        next_url=next_url,
        first_url=f"/reporting/rows?{selection.query(**query)}" if page["cursor"] else None,
    )


def _after(cursor: str | None) -> tuple[date, str] | None:
    values = Cursor.decode(cursor, 2)
    if values is None:
        return None
    day, key = str(values[0]), str(values[1])
    try:
        if not is_id(key):
            raise ValueError
        return date.fromisoformat(day), key
    except ValueError:
        raise Invalid(
            "This page's cursor is damaged: start again from the first page.", fields={"cursor": "damaged"}
        ) from None
