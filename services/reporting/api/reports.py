"""The API of the report: the same numbers, for programs."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from flask_smorest import Blueprint

from services.reporting.api import schemas
from services.reporting.domain.nps import Difference, Score, score
from services.reporting.pages.report import today
from services.reporting.queries import figures, funnel, scores
from services.reporting.selection import Selection, read
from shared.web import allow, service

blp = Blueprint(
    "reports", __name__, url_prefix="/reporting/api", description="Figures with their interval and their n."
)


def _selection(query: dict[str, Any]) -> Selection:
    given = {name.rstrip("_"): str(value) for name, value in query.items() if value is not None}
    return read(given, today())


@blp.route("/nps")
class Nps(MethodView):
    @allow("lead", "admin", "viewer", scope="reports:read")
    @blp.arguments(schemas.Query, location="query")
    @blp.response(200, schemas.NpsReport)
    def get(self, query: dict[str, Any]) -> dict[str, Any]:
        """The score in all, by day and by touchpoint, compared with as many days before."""
        selection = _selection(query)
        with service().db.transaction() as tx:
            found = scores.scores(tx, selection)
            unconfirmed = figures.count(tx, figures.FIGURES["unconfirmed"], selection)
        return {
            **_about(selection),
            "total": _compared(found.total),
            "days": [{"day": day, **_score(score(tally))} for day, tally in sorted(found.by_day.items())],
            "touchpoints": [
                {"touchpoint": name, **_compared(compared)} for name, compared in found.by_touchpoint.items()
            ],
            "programs": [
                {"program": key, **_compared(compared)} for key, compared in found.by_program.items()
            ],
            "unconfirmed_clicks": unconfirmed,
            "quarantined": found.quarantined,
            "excluded": found.excluded,
        }


@blp.route("/funnel")
class FunnelReport(MethodView):
    @allow("lead", "admin", "viewer", scope="reports:read")
    @blp.arguments(schemas.Query, location="query")
    @blp.response(200, schemas.FunnelReport)
    def get(self, query: dict[str, Any]) -> dict[str, Any]:
        """How far the invitations handed over in the period came round the loop, stage by stage."""
        selection = _selection(query)
        with service().db.transaction() as tx:
            found = funnel.funnel(tx, selection)
        return {
            **_about(selection),
            "stages": [
                {
                    "stage": step.stage.name,
                    "title": step.stage.title,
                    "definition": step.stage.definition,
                    "count": step.count,
                    "of": step.stage.of,
                    "share": step.share,
                    "previous_count": step.count_before,
                    "previous_share": step.share_before,
                    "change": None
                    if step.change is None
                    else {
                        "points": step.change.points,
                        "margin": step.change.margin,
                        "significant": step.change.significant,
                        "too_few": step.change.few,
                    },
                }
                for step in found.steps
            ],
            "tried_in_time": found.counts["tried_in_time"],
            "not_helped": found.counts["not_helped"],
        }


def _about(selection: Selection) -> dict[str, Any]:
    return {
        "from_": selection.period.start,
        "to": selection.period.end,
        "time_zone": str(service().zone()),
        "program": selection.program,
        "touchpoint": selection.touchpoint,
    }


def _score(found: Score) -> dict[str, Any]:
    return {
        "nps": found.nps,
        "margin": found.margin,
        "low": found.interval.low if found.interval else None,
        "high": found.interval.high if found.interval else None,
        "method": found.method,
        "n": found.n,
        "too_few": found.few,
        "promoters": found.tally.promoters,
        "passives": found.tally.passives,
        "detractors": found.tally.detractors,
    }


def _compared(found: scores.Compared) -> dict[str, Any]:
    return {**_score(found.now), "previous": _score(found.before), "change": _difference(found.change)}


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "points": found.points,
        "margin": found.margin,
        "low": found.interval.low,
        "high": found.interval.high,
        "significant": found.significant,
        "too_few": found.few,
    }
