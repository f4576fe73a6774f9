"""How pages write times, numbers and money."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from shared.web.service import service

MINUS = "\N{MINUS SIGN}"
Instant = datetime | str | None


def when(value: Instant, *, now: datetime | None = None) -> Markup | str:
    """An instant in words near now, in the company's zone, with the exact time to hover over."""
    at = instant(value)
    if at is None:
        return ""
    here = service()
    zone = here.zone()
    local = at.astimezone(zone)
    words = near(local, (now or here.clock.now()).astimezone(zone))
    exact = f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), exact, words)


def near(local: datetime, now: datetime) -> str:
    """In words: "5 minutes ago", "today 14:30", "Mon 9 Mar 11:00", "9 Mar 2026"; both are in one zone."""
    delta = local - now
    minutes = round(abs(delta.total_seconds()) / 60)
    if minutes < 60:
        if minutes < 1:
            return "just now" if delta <= timedelta() else "in a moment"
        unit = "minute" if minutes == 1 else "minutes"
        return f"{minutes} {unit} ago" if delta < timedelta() else f"in {minutes} {unit}"
    days = (local.date() - now.date()).days
    clock = f"{local:%H:%M}"
    if days in (-1, 0, 1):
        return f"{('yesterday', 'today', 'tomorrow')[days + 1]} {clock}"
    if abs(days) < 7:
        return f"{local:%a} {local.day} {local:%b} {clock}"
    return f"{local.day} {local:%b %Y}" if local.year != now.year else f"{local.day} {local:%b}"


def day(value: Instant | date) -> str:
    """A day as "3 Mar 2026", in the company's zone."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return f"{value.day} {value:%b %Y}"
    at = instant(value)
    if at is None:
        return ""
    local = at.astimezone(service().zone())
    return f"{local.day} {local:%b %Y}"


def clock_time(value: Instant) -> str:
    """The exact minute: "3 Mar 2026 14:30", in the company's zone."""
    at = instant(value)
    if at is None:
        return ""
    local = at.astimezone(service().zone())
    return f"{local.day} {local:%b %Y %H:%M}"


def number(value: Any, places: int = 0) -> str:
    """ "1,234", with a true minus sign; nothing for None."""
    if value is None or value == "":
        return ""
    return f"{Decimal(str(value)):,.{places}f}".replace("-", MINUS)


def signed(value: Any, places: int = 0) -> str:
    """ "+34", "0" or "−5": a net promoter score, or a difference."""
    if value is None:
        return ""
    rounded = round(Decimal(str(value)), places)
    text = f"{rounded:+,.{places}f}" if rounded else f"{abs(rounded):.{places}f}"
    return text.replace("-", MINUS)


def nps(value: Any, margin: Any = None, n: int | None = None) -> str:
    """ "+32 ± 6 · n 412"; below 30 answers "too few to tell · n 12"."""
    if n is not None and n < 30:
        return f"too few to tell · n {n}"
    text = signed(value)
    if margin is not None:
        text += f" ± {number(margin)}"
    if n is not None:
        text += f" · n {number(n)}"
    return text


def money(value: Any, currency: str = "") -> str:
    """ "12,000", with its currency when there is one; cents only when there are any."""
    if value is None or value == "":
        return ""
    amount = Decimal(str(value))
    text = number(amount, 0 if amount == amount.to_integral_value() else 2)
    return f"{text} {currency}".strip()


def plural(count: int, one: str, many: str = "") -> str:
    """ "1 customer", "1,200 customers"."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def band(score: int) -> str:
    """The band of a score: detractor 0–6, passive 7–8, promoter 9–10."""
    return "detractor" if score <= 6 else "passive" if score <= 8 else "promoter"


def instant(value: Instant) -> datetime | None:
    """An instant from what a row or an event's data carries."""
    if not value:
        return None
    return datetime.fromisoformat(value) if isinstance(value, str) else value


FILTERS = {
    "when": when,
    "day": day,
    "clock_time": clock_time,
    "number": number,
    "signed": signed,
    "nps": nps,
    "money": money,
    "plural": plural,
    "band": band,
}
