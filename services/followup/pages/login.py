"""Logging in and out, and one's own password and absence."""

from __future__ import annotations

from datetime import date
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request

from services.followup.commands import login as logins
from services.followup.commands import staff
from services.followup.queries import staff as people
from shared.errors import Invalid, TooMany
from shared.web import actor, actor_or_none, allow, flash, public, safe_next, service, session

bp = Blueprint("login", __name__)


@bp.get("/followup/login")
@public
def login_page() -> Any:
    """The form; who is logged in already goes on."""
    where = safe_next(request.args.get("next"))
    if actor_or_none() is not None:
        return redirect(where, 303)
    return _form(where)


@bp.post("/followup/login")
@public
def log_in() -> Any:
    """Checks the password and starts a session."""
    where = safe_next(request.form.get("next"))
    name = request.form.get("login", "")
    try:
        row = logins.log_in(
            service().db.transaction,
            login=name,
            password=request.form.get("password", ""),
            address=request.remote_addr or "",
        )
    except Invalid as error:
        return _form(where, name, error.message, 401)
    except TooMany as error:
        page = _form(where, name, error.message, 429)
        page.headers["Retry-After"] = str(error.retry_after)
        return page
    response = _to("/followup/password" if row["must_change_password"] else where)
    _start(response, row)
    return response


@bp.post("/followup/logout")
@allow(when_new=True)
def log_out() -> Any:
    """Ends this browser's session."""
    response = _to("/followup/login")
    session.end(response)
    return response


@bp.post("/followup/logout-everywhere")
@allow(when_new=True)
def log_out_everywhere() -> Any:
    """Ends all one's sessions, on every device."""
    with service().db.transaction() as tx:
        staff.log_out_everywhere(tx, actor().id)
    flash("You are logged out on every device.")
    response = _to("/followup/login")
    session.end(response)
    return response


@bp.get("/followup/password")
@allow(when_new=True)
def password_page() -> Any:
    """One's own password, absence, and the way out everywhere."""
    return _account({}, {})


@bp.post("/followup/password")
@allow(when_new=True)
def change_password() -> Any:
    """Sets one's own password; other sessions end, this one goes on."""
    form = {name: request.form.get(name, "") for name in ("name", "email")}
    new, again = request.form.get("new", ""), request.form.get("again", "")
    try:
        with service().db.transaction() as tx:
            row = staff.set_own_password(
                tx,
                actor().id,
                current=request.form.get("current", ""),
                new=new,
                again=again,
                email=form["email"],
                name=form["name"],
            )
    except Invalid as error:
        return _account(form, error.fields)
    flash("Your password is changed. Other devices are logged out.")
    response = _to("/")
    _start(response, row)
    return response


@bp.post("/followup/absence")
@allow("agent", "lead", "admin")
def set_absence() -> Any:
    """One's own absence: from when until when, and who stands in."""
    form = {name: request.form.get(name, "") for name in ("absent_from", "absent_until", "deputy_id")}
    try:
        with service().db.transaction() as tx:
            row = staff.set_absence(tx, actor().id, **read_absence(form))
    except Invalid as error:
        return _account(form, error.fields)
    flash("Your absence is saved." if row["absent_from"] else "You are not away (any more).")
    return redirect("/followup/password", 303)


def read_absence(form: dict[str, str]) -> dict[str, Any]:
    """The fields of an absence form. Raises `Invalid` for a day that is none."""
    days: dict[str, date | None] = {}
    for name in ("absent_from", "absent_until"):
        text = form.get(name, "").strip()
        try:
            days[name] = date.fromisoformat(text) if text else None
        except ValueError as error:
            raise Invalid("The absence was not saved.", fields={name: "This is not a day."}) from error
    return {**days, "deputy_id": form.get("deputy_id") or None}


def _form(where: str, name: str = "", problem: str | None = None, status: int = 200) -> Any:
    with service().db.transaction() as tx:
        first = people.is_first_login(tx)
    page = render_template(
        "followup/login.html", next=where, login=name, problem=problem, first=first, locked=status == 429
    )
    return make_response(page, status)


def _account(form: dict[str, str], fields: dict[str, str]) -> Any:
    with service().db.transaction() as tx:
        row = people.person(tx, actor().id)
        colleagues = [p for p in people.owners(tx) if p["id"] != row["id"]]
    page = render_template(
        "followup/password.html",
        person=row,
        first=row["email"] == staff.FIRST_ADMIN,
        colleagues=colleagues,
        form=form,
        wrong=fields,
    )
    return make_response(page, 422 if fields else 200)


def _start(response: Response, row: dict[str, Any]) -> None:
    session.start(response, row["id"], row["epoch"], must_change=row["must_change_password"])


def _to(url: str) -> Response:
    return make_response(redirect(url, 303))
