"""The chart of the score over time as a Vega-Lite specification: line, interval, answers, our changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Literal

from services.reporting.domain.finding import Mark
from services.reporting.domain.nps import Score
from services.reporting.domain.period import Grain

Theme = Literal["light", "dark"]
Width = Literal["wide", "medium", "narrow"]

# The tokens of the style sheet, as a picture cannot read them.
_COLOURS: dict[Theme, dict[str, str]] = {
    "light": {
        "ink": "#16191d",
        "soft": "#4d5561",
        "line": "#dcdfe4",
        "accent": "#1d4ed8",
        "paper": "#ffffff",
        "mark": "#7b8491",
    },
    "dark": {
        "ink": "#eceef1",
        "soft": "#aab2bf",
        "line": "#313741",
        "accent": "#8fb0ff",
        "paper": "#14171c",
        "mark": "#aab2bf",
    },
}
_SIZES: dict[Width, tuple[int, int, int]] = {
    "wide": (1120, 220, 48),
    "medium": (600, 200, 44),
    "narrow": (296, 180, 40),
}
_TICKS: dict[Width, int] = {"wide": 12, "medium": 8, "narrow": 4}
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif'


@dataclass(frozen=True, slots=True)
class Point:
    """One day, week or month, by its first day."""

    day: date
    score: Score


def spec(
    points: Sequence[Point], marks: Sequence[Mark], grain: Grain, theme: Theme, width: Width
) -> dict[str, Any]:
    """The specification; there is at least one point. Points without answers break the line, those with
    few answers are hollow."""
    colours = _COLOURS[theme]
    across, high, low = _SIZES[width]
    rows = [_row(point) for point in points]
    known = [row for row in rows if row["nps"] is not None]
    bottom = min([row["low"] for row in known], default=-10)
    top = max([row["high"] for row in known], default=10)
    domain = [max(-100, _down(bottom)), min(100, _up(top))]
    x = {
        "field": "day",
        "type": "temporal",
        "scale": {"type": "utc", "domain": _span(points, grain)},
        "axis": None,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": None,
        "padding": 4,
        "spacing": 12,
        "config": _config(colours),
        "vconcat": [
            {
                "width": across,
                "height": high,
                "layer": _score_layers(rows, marks, x, domain, colours, width),
            },
            {
                "width": across,
                "height": low,
                "data": {"values": [row for row in rows if row["n"]]},
                "mark": {
                    "type": "bar",
                    "color": colours["mark"],
                    "opacity": 0.55,
                    "width": _bar(across, len(rows)),
                },
                "encoding": {
                    "x": x | {"axis": _time_axis(points, grain, width)},
                    "y": {
                        "field": "n",
                        "type": "quantitative",
                        "title": "answers",
                        "axis": {"tickCount": 2, "grid": False, "format": "~s", "tickMinStep": 1},
                    },
                },
            },
        ],
    }


def _row(point: Point) -> dict[str, Any]:
    score = point.score
    return {
        "day": point.day.isoformat(),
        "nps": None if score.nps is None else round(score.nps, 2),
        "low": None if score.interval is None else round(score.interval.low, 2),
        "high": None if score.interval is None else round(score.interval.high, 2),
        "n": score.n,
        "few": score.few,
    }


def _score_layers(
    rows: list[dict[str, Any]],
    marks: Sequence[Mark],
    x: dict[str, Any],
    domain: list[int],
    colours: dict[str, str],
    width: Width,
) -> list[dict[str, Any]]:
    y_axis = {"tickCount": 5, "format": "+d", "labelExpr": "replace(datum.label, '+0', '0')"}
    y: dict[str, Any] = {"type": "quantitative", "scale": {"domain": domain, "nice": False}, "title": "NPS"}
    data = {"values": rows}
    layers: list[dict[str, Any]] = [
        {
            "data": data,
            "mark": {"type": "area", "color": colours["accent"], "opacity": 0.16, "interpolate": "linear"},
            "encoding": {"x": x, "y": y | {"field": "low", "axis": y_axis}, "y2": {"field": "high"}},
        },
        {
            "data": {"values": [{"zero": 0}]} if domain[0] < 0 < domain[1] else {"values": []},
            "mark": {"type": "rule", "color": colours["mark"], "strokeWidth": 1},
            "encoding": {"y": y | {"field": "zero"}},
        },
        {
            "data": data,
            "mark": {"type": "line", "color": colours["accent"], "strokeWidth": 2},
            "encoding": {"x": x, "y": y | {"field": "nps"}},
        },
        {
            "data": {"values": [row for row in rows if row["n"]]},
            "mark": {"type": "point", "filled": True, "size": 28, "opacity": 1, "strokeWidth": 1.5},
            "encoding": {
                "x": x,
                "y": y | {"field": "nps"},
                "stroke": {"value": colours["accent"]},
                "fill": {
                    "condition": {"test": "datum.few", "value": colours["paper"]},
                    "value": colours["accent"],
                },
            },
        },
    ]
    if marks:
        layers += _marks(marks, x, colours, width)
    return layers


def _marks(
    marks: Sequence[Mark], x: dict[str, Any], colours: dict[str, str], width: Width
) -> list[dict[str, Any]]:
    """Our changes: a dashed line each, numbered as in the list below, so that labels never collide."""
    by_day: dict[date, list[int]] = {}
    for number, mark in enumerate(marks, 1):
        by_day.setdefault(mark.day, []).append(number)
    data = {
        "values": [
            {"day": day.isoformat(), "label": ", ".join(map(str, numbers))} for day, numbers in by_day.items()
        ]
    }
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": colours["ink"], "strokeDash": [4, 3], "strokeWidth": 1},
            "encoding": {"x": x},
        },
        {
            "data": data,
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "top",
                "dx": 4,
                "dy": 1,
                "color": colours["ink"],
                "fontWeight": 600,
                "fontSize": 13,
            },
            "encoding": {"x": x, "y": {"value": 0}, "text": {"field": "label"}},
        },
    ]


def _span(points: Sequence[Point], grain: Grain) -> list[str]:
    """From half a point before the first to half a point after the last, so that no bar is cut."""
    half = timedelta(days={"day": 1, "week": 7, "month": 30}[grain]) / 2
    first, last = (datetime.combine(day, time()) for day in (points[0].day, points[-1].day))
    return [(first - half).isoformat(), (last + half).isoformat()]


def _time_axis(points: Sequence[Point], grain: Grain, width: Width) -> dict[str, Any]:
    """Ticks where points are: a week's at its first day, not wherever Sundays fall."""
    every = -(-len(points) // _TICKS[width])
    return {
        "values": [point.day.isoformat() for point in points[::every]],
        "title": None,
        "grid": False,
        "format": "%b %Y" if grain == "month" else "%-d %b",
        "labelOverlap": True,
        "labelFlush": True,
    }


def _config(colours: dict[str, str]) -> dict[str, Any]:
    return {
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": colours["soft"],
            "titleColor": colours["soft"],
            "labelFontSize": 13,
            "titleFontSize": 13,
            "titleFontWeight": 400,
            "gridColor": colours["line"],
            "domainColor": colours["line"],
            "tickColor": colours["line"],
            "domain": False,
            "minExtent": 44,
            "maxExtent": 44,
        },
    }


def _bar(across: int, count: int) -> float:
    return max(1.0, min(24.0, 0.7 * across / max(1, count)))


def _down(value: float) -> int:
    return int(value // 10) * 10


def _up(value: float) -> int:
    return -int(-value // 10) * 10
