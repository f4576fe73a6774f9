"""The company's settings as followup knows them from survey, with what holds until they arrive."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

from shared.db import Tx

UNKNOWN: dict[str, Any] = {
    "name": "",
    "sender_name": "",
    "sender_email": "",
    "reply_to": "",
    "postal_address": "",
    "colour": "#0b5fff",
    "language": "en",
    "time_zone": "UTC",
}


def settings(tx: Tx) -> dict[str, Any]:
    """The data of the newest `company.changed`, over harmless defaults."""
    data = tx.value("SELECT data FROM company")
    return {**UNKNOWN, **{name: value for name, value in (data or {}).items() if value is not None}}


def day_begins(company: dict[str, Any], day: date) -> datetime:
    """The instant at which a day begins where the company is, in UTC."""
    return datetime.combine(day, time(), ZoneInfo(company["time_zone"])).astimezone(UTC)


def today(company: dict[str, Any], now: datetime) -> date:
    """The company's day at an instant."""
    return now.astimezone(ZoneInfo(company["time_zone"])).date()
