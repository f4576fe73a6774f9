"""The pages of changes: the list, writing one, whom it concerns, telling them, and what became of it."""

from __future__ import annotations

from datetime import date
from typing import Any

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from services.followup.commands import changes as commands
from services.followup.commands import notices
from services.followup.domain.change import LANGUAGES, Draft, reason_text
from services.followup.pages.previews import previews, telling
from services.followup.queries import audience, company
from services.followup.queries import changes as queries
from services.followup.queries import themes as themes_of
from services.followup.who import by
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.ids import is_id
from shared.web import Cursor, allow, flash, service

bp = Blueprint("followup_changes", __name__)
_HERE = "/followup/changes"
_PAGE = 50
_LEADS = ("lead", "admin")


@bp.get(_HERE)
@allow(*_LEADS)
def index() -> str:
    state = request.args.get("state")
    state = state if state in queries.STATES else None
    with service().db.transaction() as tx:
        rows = queries.listing(
            tx, state=state, limit=_PAGE + 1, after=queries.after(request.args.get("cursor"))
        )
        totals = queries.totals(tx)
    return render_template(
        "followup/changes.html",
        changes=rows[:_PAGE],
        totals=totals,
        state=state,
        next_url=_next(rows, f"{_HERE}?state={state or ''}", "created_at", "id"),
    )


@bp.get(f"{_HERE}/new")
@allow(*_LEADS)
def new() -> str:
    with service().db.transaction() as tx:
        language = company.settings(tx)["language"]
        theme = request.args.get("theme", "")
        return _form(tx, Draft(language=language, theme_ids=(theme,) if is_id(theme) else ()))


@bp.post(f"{_HERE}/new")
@allow(*_LEADS)
def create() -> Response | tuple[str, int]:
    draft, wrong = _typed()
    try:
        _refuse(wrong)
        with service().db.transaction() as tx:
            change_id = commands.create(tx, draft, by())
    except Invalid as error:
        with service().db.transaction() as tx:
            return _form(tx, draft, {**error.fields, **wrong}), error.status
    flash("Saved as a draft. Nobody has been told yet.")
    return redirect(f"{_HERE}/{change_id}", 303)


@bp.get(f"{_HERE}/<change_id>/edit")
@allow(*_LEADS)
def edit(change_id: str) -> str | Response:
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        if change["state"] != "draft":
            flash("This change is not a draft any more: its words stay as they were sent.", "note")
            return redirect(f"{_HERE}/{change_id}", 303)
        draft = Draft(
            change["title"],
            change["was_wrong"],
            change["is_different"],
            change["language"],
            change["since"],
            tuple(theme["id"] for theme in change["themes"]),
        )
        return _form(tx, draft, change=change)


@bp.post(f"{_HERE}/<change_id>/edit")
@allow(*_LEADS)
def save(change_id: str) -> Response | tuple[str, int]:
    draft, wrong = _typed()
    try:
        _refuse(wrong)
        with service().db.transaction() as tx:
            commands.save(tx, change_id, draft, _number("version"))
    except (Invalid, Conflict) as error:
        fields = {**error.fields, **wrong} or {"title": error.message}
        with service().db.transaction() as tx:
            return _form(tx, draft, fields, queries.one(tx, change_id)), error.status
    flash("Saved.")
    return redirect(f"{_HERE}/{change_id}", 303)


@bp.get(f"{_HERE}/<change_id>")
@allow(*_LEADS)
def show(change_id: str) -> str:
    after = queries.after_id(request.args.get("cursor"))
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        return _draft(tx, change, after) if change["state"] == "draft" else _told(tx, change, after)


@bp.get(f"{_HERE}/<change_id>/publish")
@allow(*_LEADS)
def confirm(change_id: str) -> str | Response:
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        if change["state"] == "withdrawn":
            return redirect(f"{_HERE}/{change_id}", 303)
        size = audience.size(tx, change)
        if change["state"] == "published" and not size.total:
            return redirect(f"{_HERE}/{change_id}", 303)
        people = audience.people(tx, change, limit=_PAGE)
    return render_template(
        "followup/change_confirm.html", change=change, size=size, people=people, reason_text=reason_text
    )


@bp.post(f"{_HERE}/<change_id>/publish")
@allow(*_LEADS)
def publish(change_id: str) -> Response:
    expected = _number("expected")
    try:
        with service().db.transaction() as tx:
            if request.form.get("more"):
                _, reachable = commands.tell_more(tx, change_id, expected=expected)
                flash(
                    f"On their way: {_customers(reachable)}."
                    if reachable
                    else "There was nobody more who can be reached."
                )
            else:
                change, did, reachable = commands.publish(
                    tx, change_id, by(), version=_number("version"), expected=expected
                )
                flash(
                    f"Published. {_customers(reachable)} will hear of it now."
                    if did
                    else f"{change['published_by_name']} has published this already. Nobody is told twice."
                )
    except Conflict as error:
        flash(error.message, "problem")
        return redirect(
            f"{_HERE}/{change_id}/publish" if error.slug == "audience-changed" else f"{_HERE}/{change_id}",
            303,
        )
    return redirect(f"{_HERE}/{change_id}", 303)


@bp.get(f"{_HERE}/<change_id>/withdraw")
@allow(*_LEADS)
def confirm_withdraw(change_id: str) -> str:
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
    return render_template("followup/change_withdraw.html", change=change)


@bp.post(f"{_HERE}/<change_id>/withdraw")
@allow(*_LEADS)
def withdraw(change_id: str) -> Response:
    with service().db.transaction() as tx:
        change, stopped = commands.withdraw(tx, change_id)
    if change["published_at"]:
        flash(f"Withdrawn. {_customers(stopped)} whose message was still waiting will not get it.")
    else:
        flash("The draft is put aside. You can take it up again.")
    return redirect(f"{_HERE}/{change_id}", 303)


@bp.post(f"{_HERE}/<change_id>/restore")
@allow(*_LEADS)
def restore(change_id: str) -> Response:
    with service().db.transaction() as tx:
        commands.restore(tx, change_id)
    flash("It is a draft again.")
    return redirect(f"{_HERE}/{change_id}", 303)


@bp.post(f"{_HERE}/<change_id>/notices/<notice_id>/again")
@allow(*_LEADS)
def send_again(change_id: str, notice_id: str) -> Response:
    try:
        with service().db.transaction() as tx:
            if not queries.has_notice(tx, change_id, notice_id):
                raise NotFound("This change has no such message.")
            notices.send_again(tx, notice_id, by())
        flash("It is queued once more.")
    except Conflict as error:
        flash(error.message, "note")
    return redirect(f"{_HERE}/{change_id}?show=uncertain", 303)


def _draft(tx: Tx, change: Row, after: str | None) -> str:
    people = audience.people(tx, change, after=after, limit=_PAGE + 1)
    return render_template(
        "followup/change_draft.html",
        change=change,
        size=audience.size(tx, change),
        people=people[:_PAGE],
        next_url=_next(people, f"{_HERE}/{change['id']}?", "customer_id"),
        first=after is None,
        previews=previews(tx, change, telling(people)),
        reason_text=reason_text,
    )


def _told(tx: Tx, change: Row, after: str | None) -> str:
    show = request.args.get("show")
    show = show if show in queries.NOTICE_STATES else None
    rows = queries.notices(tx, change["id"], state=show, limit=_PAGE + 1, after=after)
    more = audience.size(tx, change) if change["state"] == "published" else audience.Size(0, {})
    return render_template(
        "followup/change_told.html",
        change=change,
        rows=rows[:_PAGE],
        show=show,
        reasons=queries.skip_reasons(tx, change["id"]),
        more=more,
        next_url=_next(rows, f"{_HERE}/{change['id']}?{_query(show=show or '')}", "customer_id"),
        first=after is None,
        reason_text=reason_text,
    )


def _form(tx: Tx, draft: Draft, wrong: dict[str, str] | None = None, change: Row | None = None) -> str:
    choice = themes_of.active(tx)
    if change:
        known = {theme["id"] for theme in choice}
        choice += [theme for theme in change["themes"] if theme["id"] not in known]
    return render_template(
        "followup/change_form.html",
        draft=draft,
        wrong=wrong or {},
        change=change,
        themes=choice,
        languages=list(LANGUAGES.items()),
        since=request.form.get("since", draft.since.isoformat() if draft.since else ""),
        version=request.form.get("version") or (change["version"] if change else ""),
        today=company.today(company.settings(tx), tx.now),
    )


def _typed() -> tuple[Draft, dict[str, str]]:
    form, wrong, since = request.form, dict[str, str](), None
    if form.get("since"):
        try:
            since = date.fromisoformat(form["since"])
        except ValueError:
            wrong["since"] = "Write the day as 2026-03-31."
    themes = tuple(form.getlist("theme_ids"))
    draft = Draft(
        form.get("title", ""),
        form.get("was_wrong", "").replace("\r\n", "\n"),
        form.get("is_different", "").replace("\r\n", "\n"),
        form.get("language", ""),
        since,
        themes,
    )
    return draft, wrong


def _refuse(wrong: dict[str, str]) -> None:
    if wrong:
        raise Invalid("Something needs another look.", fields=wrong)


def _number(name: str) -> int | None:
    value = request.form.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 else None


def _customers(count: int) -> str:
    return f"{count:,} {'customer' if count == 1 else 'customers'}"


def _query(**values: Any) -> str:
    from urllib.parse import urlencode

    return urlencode({name: value for name, value in values.items() if value})


def _next(rows: list[Row], url: str, *names: str) -> str | None:
    """The address of the next page, when one row more than a page was read."""
    if len(rows) <= _PAGE:
        return None
    last = rows[_PAGE - 1]
    return f"{url}{'' if url.endswith('?') else '&'}cursor={Cursor.encode(*(last[name] for name in names))}"
