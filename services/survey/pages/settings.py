"""The company's settings: what each affects, and saving them."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from functools import cache
from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request
from marshmallow import ValidationError

from services.survey import schemas
from services.survey.commands import company as commands
from services.survey.domain.hours import DAYS
from services.survey.pages.forms import Wrong
from services.survey.queries.company import company
from shared.db import Row, Tx
from shared.errors import Invalid
from shared.web import allow, flash, service
from shared.web.problems import flatten

bp = Blueprint("settings", __name__)

DAY_NAMES = dict(
    zip(DAYS, ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"), strict=True)
)
LANGUAGE_NAMES = (("en", "English"), ("de", "Deutsch"), ("es", "Español"))
_TEXTS = (
    "name",
    "postal_address",
    "colour",
    "sender_name",
    "sender_email",
    "reply_to",
    "language",
    "time_zone",
    "first_contact_hours",
    "fallback_owner",
    "ask_gap_days",
    "contact_limit",
)


@bp.get("/survey/settings")
@allow("admin")
def settings_page() -> Any:
    """All settings, in groups."""
    with service().db.transaction() as tx:
        return _page(tx, company(tx), {})


@bp.post("/survey/settings")
@allow("admin")
def save() -> Any:
    """Saves what was changed, or shows it again with what is wrong."""
    wrong = save_form(request.form)
    if not wrong:
        flash("The settings are saved. What is sent or promised from now on follows them.")
        return redirect("/survey/settings", 303)
    with service().db.transaction() as tx:
        return make_response(_page(tx, shown(tx, request.form), wrong), 422)


def save_form(form: Mapping[str, str]) -> dict[str, str]:
    """Saves the settings of a form; returns what is wrong with its fields when they cannot be saved."""
    try:
        found = schemas.Company(partial=True).load(_given(form))
        with service().db.transaction() as tx:
            commands.change(tx, found)
    except ValidationError as error:
        return {name.split(".")[0]: text for name, text in flatten(error.messages).items()}
    except Invalid as error:
        return dict(error.fields)
    return {}


def _given(form: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a form has; others stay as they are."""
    given: dict[str, Any] = {name: form[name] for name in _TEXTS if name in form}
    if "fallback_owner" in given:
        given["fallback_owner"] = given["fallback_owner"].strip() or None
    if "hours" in form:
        hours = _hours(form)
        given["business_hours"] = {day: pair for day, pair in hours.items() if any(pair)}
    return given


def _hours(form: Mapping[str, str]) -> dict[str, list[str]]:
    return {day: [form.get(f"{day}_from", "").strip(), form.get(f"{day}_until", "").strip()] for day in DAYS}


def shown(tx: Tx, form: Mapping[str, str]) -> Row:
    """The settings with what somebody typed over them, so that nothing typed is lost."""
    row = company(tx)
    row.update({name: form[name] for name in _TEXTS if name in form})
    if "hours" in form:
        row["business_hours"] = _hours(form)
    return row


@cache
def zones() -> list[str]:
    """Time zones to choose from: places, no abbreviations."""
    return [
        "UTC",
        *sorted(
            name for name in zoneinfo.available_timezones() if "/" in name and not name.startswith("Etc")
        ),
    ]


def choices(tx: Tx) -> dict[str, Any]:
    """What the form's fields offer."""
    return {
        "zones": zones(),
        "languages": LANGUAGE_NAMES,
        "days": DAY_NAMES,
        "staff": tx.all(
            "SELECT email, name FROM staff WHERE NOT disabled AND role IN ('agent', 'lead', 'admin')"
            " ORDER BY name, email"
        ),
    }


def _page(tx: Tx, row: Row, wrong: Mapping[str, str]) -> str:
    return render_template("survey/settings.html", company=row, wrong=Wrong(wrong), **choices(tx))
