"""The report: is the loop closed, and what do customers say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from flask import Blueprint, render_template, request

from services.reporting.charts.series import Series, series
from services.reporting.domain.finding import Finding, finding
from services.reporting.domain.funnel import BY_NAME
from services.reporting.domain.period import GRAINS, PRESETS
from services.reporting.freshness import LagWatch, lag_watch
from services.reporting.queries import figures, funnel, scores, surroundings
from services.reporting.selection import Selection, read
from shared.db import Tx
from shared.errors import Invalid
from shared.web import allow, service

bp = Blueprint("report", __name__)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page shows, read in one transaction."""

    funnel: funnel.Funnel
    scores: scores.Scores
    series: Series
    finding: Finding
    published: list[surroundings.Published]
    unconfirmed: int
    skips: list[tuple[str, int]]
    programs: list[tuple[str, str]]
    touchpoints: list[str]
    anything: bool

    @property
    def skipped(self) -> int:
        return sum(count for _, count in self.skips)


def today() -> date:
    """The present day in the company's zone."""
    here = service()
    return here.clock.now().astimezone(here.zone()).date()


def load(tx: Tx, selection: Selection) -> Report:
    """Reads the report for a selection."""
    found = scores.scores(tx, selection)
    published = surroundings.published(tx, selection)
    line = series(found.by_day, published, selection)
    return Report(
        funnel.funnel(tx, selection),
        found,
        line,
        finding(found.by_day, found.total.before.tally, selection.period, line.marks),
        published,
        figures.count(tx, figures.FIGURES["unconfirmed"], selection),
        surroundings.skips_by_reason(tx, selection),
        surroundings.programs(tx),
        surroundings.touchpoints(tx),
        surroundings.anything(tx),
    )


@bp.get("/reporting/")
@allow("lead", "admin", "viewer")
def show() -> tuple[str, int]:
    """The whole report on one page; a period that cannot be read is said on top of the usual one."""
    problems: dict[str, str] = {}
    try:
        selection = read(request.args, today())
    except Invalid as error:
        problems, selection = error.fields, read({}, today())
    with service().db.transaction() as tx:
        report = load(tx, selection)
    page = render_template(
        "reporting/report.html",
        r=report,
        s=selection,
        stages=BY_NAME,
        presets=PRESETS,
        grains=GRAINS,
        given=request.args if problems else {},
        problems=problems,
        headline=headline(report),
        **freshness(lag_watch()),
    )
    return page, 422 if problems else 200


def freshness(watch: LagWatch) -> dict[str, Any]:
    """ "as of 12:03, 4 s behind", and the exact instant."""
    found = watch.freshness()
    if found.at is None:
        return {"as_of": "how fresh this is cannot be told: the log does not answer", "as_of_exact": ""}
    at: datetime = found.at.astimezone(service().zone())
    seconds = round(found.behind.total_seconds())
    if not found.known:
        words = "the log does not answer, newer events are not in it"
    elif not found.unread:
        words = "nothing waits"
    elif seconds < 120:
        words = f"{seconds} s behind"
    else:
        words = f"{round(seconds / 60)} minutes behind"
    return {"as_of": f"as of {at:%H:%M}, {words}", "as_of_exact": f"{at:%Y-%m-%d %H:%M:%S} {at.tzname()}"}


def headline(report: Report) -> str:
    """The page's title: whether the loop is closed, as a sentence with its figure."""
    counts = report.funnel.counts
    if not counts["asked"]:
        return "Nobody was asked in this period"
    if not counts["answered"]:
        asked = counts["asked"]
        return f"{asked:,} {'was' if asked == 1 else 'were'} asked, nobody has answered yet"
    if not counts["tasked"]:
        answered = counts["answered"]
        return f"{answered:,} {'answer' if answered == 1 else 'answers'}, none of them needed a callback"
    open_ = counts["tasked"] - counts["resolved"]
    if not open_:
        who = f"all {counts['tasked']:,}" if counts["tasked"] > 1 else "the one"
        return f"The loop is closed for {who} who needed a callback"
    return f"The loop is closed for {counts['resolved']:,} of {counts['tasked']:,} who needed a callback"
