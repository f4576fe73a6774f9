"""The customers' page: search first, then one line per customer; and adding one by hand."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, make_response, redirect, render_template, request
from marshmallow import ValidationError

from services.survey import schemas
from services.survey.commands import customers as commands
from services.survey.edge import opt_out_fingerprints
from services.survey.pages.forms import Wrong
from services.survey.queries import customers as queries
from shared.errors import Conflict, Invalid
from shared.ids import is_id
from shared.web import PageArgs, actor, allow, flash, service
from shared.web.problems import flatten

bp = Blueprint("customers", __name__)

# Why somebody would not be asked now, in words.
REASONS = {
    "opted_out": "opted out",
    "no_address": "no address",
    "bounced": "address is dead",
    "recently_asked": "asked lately",
    "contact_limit": "enough messages for now",
}
FIELDS = (
    "external_id",
    "email",
    "phone",
    "name",
    "account",
    "account_manager",
    "tier",
    "annual_value",
    "language",
    "time_zone",
    "touchpoint",
)


@bp.get("/survey/customers")
@allow("agent", "lead", "admin")
def customers_page() -> Any:
    """Search, and one line per customer: who, last score, last asked, may be asked?"""
    return _list("/survey/customers")


@bp.get("/survey/search")
@allow("agent", "lead", "admin")
def search_page() -> Any:
    """The same list, for the search in the bar; a single hit opens at once."""
    return _list("/survey/search")


def _list(path: str) -> Any:
    args = PageArgs().load(request.args.to_dict())
    q = request.args.get("q", "").strip()[:200]
    account_id = request.args.get("account", "")
    who = actor()
    if account_id and not is_id(account_id):
        account_id = ""
    with service().db.transaction() as tx:
        rows, following = queries.find(
            tx, who, q=q, account_id=account_id or None, cursor=args["cursor"], limit=args["limit"]
        )
        flags = queries.why_not(tx, [row["id"] for row in rows])
        total = queries.count(tx) if not (q or account_id or who.is_agent) else None
        account = (
            tx.value("SELECT name FROM account WHERE id = %s", (account_id,)) if account_id and rows else None
        )
    if path.endswith("search") and q and len(rows) == 1 and not args["cursor"]:
        return redirect(f"/survey/customers/{rows[0]['id']}", 302)
    kept = {name: value for name, value in (("q", q), ("account", account_id)) if value}
    return render_template(
        "survey/customers.html",
        rows=rows,
        flags=flags,
        reasons=REASONS,
        q=q,
        search_text=q,
        account=account,
        total=total,
        may_change=who.role in ("lead", "admin"),
        first_url=f"{path}?{urlencode(kept)}" if args["cursor"] else None,
        next_url=f"{path}?{urlencode({**kept, 'cursor': following})}" if following else None,
    )


@bp.get("/survey/customers/new")
@allow("lead", "admin")
def new_page() -> Any:
    """A form for one customer."""
    return render_template(
        "survey/customer_form.html", customer=None, form=dict.fromkeys(FIELDS, ""), wrong=Wrong()
    )


@bp.post("/survey/customers/new")
@allow("lead", "admin")
def add() -> Any:
    """Adds a customer; one who is known already is changed, and said so."""
    form = {name: request.form.get(name, "") for name in FIELDS}
    found, wrong = checked({name: text for name, text in form.items() if text.strip()})
    if not wrong:
        values, properties = schemas.split(found)
        try:
            outcome = commands.save(service().db, values, properties, opt_out_fingerprints())
        except (Invalid, Conflict) as error:
            wrong = as_form(error.fields)
        else:
            flash(
                "The customer is added."
                if outcome.effect == "created"
                else "This customer was known already."
            )
            return redirect(f"/survey/customers/{outcome.customer_id}", 303)
    page = render_template("survey/customer_form.html", customer=None, form=form, wrong=Wrong(wrong))
    return make_response(page, 422)


def checked(form: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a form's fields say, and what is wrong with them."""
    try:
        return schemas.CustomerInput().load(form), {}
    except ValidationError as error:
        return {}, flatten(error.messages)


def as_form(fields: dict[str, str]) -> dict[str, str]:
    """Errors of a command under the names of the form's fields, as sentences."""
    names = {"manager_email": "account_manager"}
    return {names.get(name, name): f"{text[:1].upper()}{text[1:]}." for name, text in fields.items()}
