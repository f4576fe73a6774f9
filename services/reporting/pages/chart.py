"""The picture of the score over time, drawn when a page that shows it asks."""

from __future__ import annotations

from flask import Blueprint, Response, request

from services.reporting.charts.render import svg
from services.reporting.charts.series import series
from services.reporting.charts.spec import Theme, Width, spec
from services.reporting.pages.report import today
from services.reporting.queries import scores, surroundings
from services.reporting.selection import read
from shared.web import allow, service

_WIDTHS: dict[str, Width] = {"wide": "wide", "medium": "medium", "narrow": "narrow"}
bp = Blueprint("chart", __name__)


@bp.get("/reporting/chart.svg")
@allow("lead", "admin", "viewer")
def show() -> Response:
    """SVG for a theme and a width; kept by the browser for good when it is still what the page meant."""
    selection = read(request.args, today())
    with service().db.transaction() as tx:
        found = scores.scores(tx, selection)
        published = surroundings.published(tx, selection)
    line = series(found.by_day, published, selection)
    theme: Theme = "dark" if request.args.get("theme") == "dark" else "light"
    width = _WIDTHS.get(request.args.get("width", ""), "wide")
    drawn = svg(spec(line.points, line.marks, line.grain, theme, width))
    if request.accept_encodings.best_match(("gzip", "identity")) == "gzip":
        reply = Response(drawn.compressed, mimetype="image/svg+xml", headers={"Content-Encoding": "gzip"})
    else:
        reply = Response(drawn.plain, mimetype="image/svg+xml")
    reply.headers["Vary"] = "Accept-Encoding, Cookie"
    is_meant = request.args.get("v") == line.digest
    reply.headers["Cache-Control"] = "private, max-age=31536000, immutable" if is_meant else "no-store"
    reply.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    return reply
