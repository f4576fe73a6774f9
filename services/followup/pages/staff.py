"""Staff: who has a login, as what, and who is away."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.followup.commands import staff
from services.followup.domain.roles import ROLES
from services.followup.pages.login import read_absence
from services.followup.queries import staff as people
from shared.errors import Conflict, Invalid
from shared.web import actor, allow, flash, service, session

bp = Blueprint("staff", __name__)


@bp.get("/followup/staff")
@allow("admin")
def staff_page() -> Any:
    """Everybody with a login, and a form to add somebody."""
    return _list({"email": request.args.get("email", ""), "role": "agent"}, {})


@bp.post("/followup/staff")
@allow("admin")
def add() -> Any:
    """Adds a person; their one-time password is shown on this very reply, and never again."""
    form = {name: request.form.get(name, "") for name in ("email", "name", "role")}
    try:
        with service().db.transaction() as tx:
            staff_id, password = staff.add(tx, one_time_key(), **form)
    except (Invalid, Conflict) as error:
        return _list(form, error.fields or {"email": error.message})
    return _person(staff_id, password=password)


@bp.get("/followup/staff/<staff_id>")
@allow("admin")
def person_page(staff_id: str) -> Any:
    """One person: role, password, absence."""
    return _person(staff_id)


@bp.post("/followup/staff/<staff_id>")
@allow("admin")
def change(staff_id: str) -> Any:
    """Saves name and role."""
    form = {name: request.form.get(name, "") for name in ("name", "role")}
    try:
        with service().db.transaction() as tx:
            row = staff.change(tx, staff_id, **form)
    except (Invalid, Conflict) as error:
        return _person(staff_id, form=form, wrong=error.fields or {"role": error.message})
    flash(f"{row['name']} is saved.")
    response = make_response(redirect(f"/followup/staff/{staff_id}", 303))
    if staff_id == actor().id:
        # One's own new role raises one's own epoch; this session goes on under it.
        session.start(response, row["id"], row["epoch"])
    return response


@bp.post("/followup/staff/<staff_id>/disable")
@allow("admin")
def disable(staff_id: str) -> Any:
    """Ends a login; tasks go to who is next in line."""
    with service().db.transaction() as tx:
        row = staff.disable(tx, staff_id)
    flash(f"{row['name']} cannot log in any more. Their open tasks went to who is next in line.")
    return redirect("/followup/staff", 303)


@bp.post("/followup/staff/<staff_id>/enable")
@allow("admin")
def enable(staff_id: str) -> Any:
    """Undoes disabling."""
    with service().db.transaction() as tx:
        row = staff.enable(tx, staff_id)
    flash(f"{row['name']} can log in again.")
    return redirect(f"/followup/staff/{staff_id}", 303)


@bp.post("/followup/staff/<staff_id>/reset")
@allow("admin")
def reset(staff_id: str) -> Any:
    """A new one-time password, shown on this very reply."""
    with service().db.transaction() as tx:
        password = staff.reset_password(tx, one_time_key(), staff_id)
    return _person(staff_id, password=password)


@bp.post("/followup/staff/<staff_id>/logout")
@allow("admin")
def log_out(staff_id: str) -> Any:
    """Ends somebody's sessions on every device (a lost phone)."""
    with service().db.transaction() as tx:
        row = staff.log_out_everywhere(tx, staff_id)
    flash(f"{row['name']} is logged out on every device.")
    return redirect(f"/followup/staff/{staff_id}", 303)


@bp.post("/followup/staff/<staff_id>/absence")
@allow("admin")
def set_absence(staff_id: str) -> Any:
    """Saves when somebody is away and who stands in."""
    form = {name: request.form.get(name, "") for name in ("absent_from", "absent_until", "deputy_id")}
    try:
        with service().db.transaction() as tx:
            row = staff.set_absence(tx, staff_id, **read_absence(form))
    except Invalid as error:
        return _person(staff_id, form=form, wrong=error.fields)
    flash(f"The absence of {row['name']} is saved." if row["absent_from"] else f"{row['name']} is not away.")
    return redirect(f"/followup/staff/{staff_id}", 303)


def one_time_key() -> bytes:
    """The key that one-time passwords are made with."""
    return service().settings.key("one-time-password")


def _list(form: dict[str, str], wrong: dict[str, str]) -> Any:
    here = service()
    with here.db.transaction() as tx:
        rows, missing = people.people(tx), people.unknown_managers(tx)
    page = render_template(
        "followup/staff.html",
        people=rows,
        missing=missing,
        roles=list(ROLES.items()),
        form=form,
        wrong=wrong,
        today=here.clock.now().astimezone(here.zone()).date(),
        active=sum(1 for row in rows if not row["disabled"]),
    )
    return make_response(page, 422 if wrong else 200)


def _person(
    staff_id: str,
    *,
    form: dict[str, str] | None = None,
    wrong: dict[str, str] | None = None,
    password: str | None = None,
) -> Any:
    here = service()
    with here.db.transaction() as tx:
        row = people.person(tx, staff_id)
        colleagues = [p for p in people.owners(tx) if p["id"] != staff_id]
    page = render_template(
        "followup/person.html",
        person=row,
        colleagues=colleagues,
        roles=list(ROLES.items()),
        form=form or {},
        wrong=wrong or {},
        password=password,
        today=here.clock.now().astimezone(here.zone()).date(),
        address=f"{here.settings.public_url}/",
    )
    return make_response(page, 422 if wrong else 200)
