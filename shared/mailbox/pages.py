"""The mailbox for people: mails and SMS as a phone shows them, and what one does with them there."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from flask import Blueprint, Response, redirect, render_template, request
from markupsafe import Markup, escape
from werkzeug.wrappers import Response as Reply

from shared.db import Row
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.mailbox import store
from shared.mailbox.api import PHONE
from shared.mailbox.gate import only_here_or_with_login, poster
from shared.settings import Settings
from shared.web import Cursor, csp_allow, csp_replace, flash, public, service

bp = Blueprint("mailbox", __name__, url_prefix="/mailbox")
_http = urllib3.PoolManager(num_pools=2, maxsize=2)
_PAGE = 30
_LINK = re.compile(r"https?://[^\s<>\"]+[^\s<>\".,;:!?)\]]")
# A mail's own page: no scripts, links only into new tabs, pictures and styles as mail programs show them.
_BODY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data: http: https:; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)


@bp.get("")
@public
@only_here_or_with_login
def index() -> Response | str:
    """Mails, newest first."""
    address = request.args.get("address", "").strip()[:320] or None
    cursor = Cursor.decode(request.args.get("cursor"), 1)
    before = cursor[0] if cursor and isinstance(cursor[0], int) else None
    with service().db.transaction() as tx:
        rows = store.mails(tx, address=address, before=before, limit=_PAGE + 1)
        counts = store.counts(tx)
    return render_template(
        "mailbox/mails.html", next_url=_next(rows, address), rows=rows[:_PAGE], **_frame(counts, address)
    )


@bp.get("/sms")
@public
@only_here_or_with_login
def sms() -> str:
    """SMS conversations, the newest first."""
    address = request.args.get("address", "").strip()[:50] or None
    with service().db.transaction() as tx:
        rows = store.threads(tx, address=address)
        counts = store.counts(tx)
    return render_template("mailbox/threads.html", rows=rows, **_frame(counts, address))


@bp.get("/sms/<phone>")
@public
@only_here_or_with_login
def sms_thread(phone: str) -> str:
    """One phone's SMS, and a field to answer."""
    _phone(phone)
    with service().db.transaction() as tx:
        rows = store.thread(tx, phone)
        counts = store.counts(tx)
    return render_template(
        "mailbox/thread.html", phone=phone, rows=rows, linked=linked, **_frame(counts, None, inside=True)
    )


@bp.post("/sms/<phone>")
@public
@only_here_or_with_login
def sms_reply(phone: str) -> Reply:
    """Answers as the customer would."""
    _phone(phone)
    text = request.form.get("text", "").strip()
    if not text or len(text) > 1600:
        flash("An SMS has between 1 and 1,600 characters. Nothing was sent.", "problem")
    else:
        with service().db.transaction() as tx:
            store.reply(tx, phone, text)
        poster().wake()
    return redirect(f"/mailbox/sms/{quote(phone)}", 303)


@bp.get("/messages/<id>")
@public
@only_here_or_with_login
def mail(id: str) -> str:
    """One mail, as the customer sees it."""
    view = request.args.get("view", "mail")
    with service().db.transaction() as tx:
        row = _mail(store.message(tx, id) if is_id(id) else None)
        store.mark_read(tx, id)
        counts = store.counts(tx)
    csp_allow("frame-src", "'self'")
    if view not in ("mail", "text", "headers") or (view == "mail" and not row["html"]):
        view = "text"
    return render_template(
        "mailbox/mail.html",
        row=row,
        view=view,
        narrow=request.args.get("width") == "phone",
        linked=linked,
        headers=all_headers(row),
        one_click=one_click_url(row["headers"]),
        **_frame(counts, None, inside=True),
    )


@bp.get("/messages/<id>/body")
@public
@only_here_or_with_login
def body(id: str) -> Response:
    """The mail's HTML alone, for the frame: links lead into new tabs, and nothing runs."""
    with service().db.transaction() as tx:
        row = _mail(store.message(tx, id) if is_id(id) else None)
    csp_replace(_BODY_POLICY)
    html = row["html"] or "<p>This mail has no HTML part.</p>"
    base = '<base target="_blank">'
    found = re.search(r"<head[^>]*>", html, re.IGNORECASE)
    html = html[: found.end()] + base + html[found.end() :] if found else base + html
    return Response(html, content_type="text/html; charset=utf-8")


@bp.post("/messages/<id>/unsubscribe")
@public
@only_here_or_with_login
def unsubscribe(id: str) -> Reply:
    """What a mail program's own unsubscribe button does: RFC 8058's POST, without opening anything."""
    with service().db.transaction() as tx:
        row = _mail(store.message(tx, id) if is_id(id) else None)
    url = one_click_url(row["headers"])
    target = reachable(service().settings, url) if url else None
    if target is None:
        raise Invalid("This mail has no one-click unsubscribe that leads to this Hearback.")
    try:
        answer = _http.request(
            "POST",
            target,
            body=b"List-Unsubscribe=One-Click",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            timeout=10.0,
            retries=False,
            redirect=False,
        )
        good = 200 <= answer.status < 300
        said = f"the sender answered {answer.status}"
    except urllib3.exceptions.HTTPError:
        good, said = False, "the sender could not be reached"
    flash(
        f"Unsubscribed as a mail program does it: {said}." if good else f"Not unsubscribed: {said}.",
        "done" if good else "problem",
    )
    return redirect(f"/mailbox/messages/{id}", 303)


@bp.post("/messages/<id>/complain")
@public
@only_here_or_with_login
def complain(id: str) -> Reply:
    """What a mail program's spam button does: the provider tells the sender about it."""
    with service().db.transaction() as tx:
        _mail(store.message(tx, id) if is_id(id) else None)
        store.report(tx, id, "complained", "Marked as spam by the recipient.")
    poster().wake()
    flash("Marked as spam; the sender was told.")
    return redirect(f"/mailbox/messages/{id}", 303)


def linked(text: str) -> Markup:
    """Plain text with its links made clickable, each into a new tab."""
    parts: list[Markup] = []
    at = 0
    for found in _LINK.finditer(text):
        parts.append(escape(text[at : found.start()]))
        parts.append(
            Markup('<a href="{0}" target="_blank" rel="noopener noreferrer">{0}</a>').format(found[0])
        )
        at = found.end()
    parts.append(escape(text[at:]))
    return Markup("").join(parts)


def preview(text: str, address: str = "") -> str:
    """The first words of a message, as lists on phones show them: in one line, `address` for each link."""
    words = " ".join(_LINK.sub(address, text).split())
    return words if len(words) <= 160 else words[:160].rsplit(" ", 1)[0] + " …"


def all_headers(row: Row) -> list[tuple[str, str]]:
    """The header as the mail would carry it."""
    sender = f"{row['sender_name']} <{row['sender']}>" if row["sender_name"] else row["sender"]
    to = f"{row['recipient_name']} <{row['recipient']}>" if row["recipient_name"] else row["recipient"]
    own = [
        ("From", sender),
        ("To", to),
        ("Reply-To", row["reply_to"]),
        ("Subject", row["subject"]),
        ("Date", f"{row['at']:%a, %d %b %Y %H:%M:%S} +0000"),
        ("Message-ID", f"<{row['id']}@mailbox.invalid>"),
        ("X-Delivery", row["delivery_id"]),
    ]
    return [(name, value) for name, value in own if value] + sorted(row["headers"].items())


def one_click_url(headers: dict[str, str]) -> str | None:
    """Where RFC 8058's POST goes, when the mail offers it."""
    known = {name.casefold(): value for name, value in headers.items()}
    if known.get("list-unsubscribe-post", "").strip().casefold() != "list-unsubscribe=one-click":
        return None
    # RFC 8058 asks for https; an installation that is tried on one machine has none.
    found = re.search(r"<(https?://[^>\s]+)>", known.get("list-unsubscribe", ""))
    return found[1] if found else None


def reachable(settings: Settings, url: str) -> str | None:
    """The same address as seen from here, or None: the mailbox posts to its own Hearback only."""
    public_url = settings.public_url + "/"
    return f"{settings.survey_url}/{url.removeprefix(public_url)}" if url.startswith(public_url) else None


def _mail(row: Row | None) -> Row:
    if row is None or row["channel"] != "email":
        raise NotFound("There is no such mail.")
    return row


def _phone(phone: str) -> None:
    if not re.fullmatch(PHONE, phone):
        raise NotFound("There is no such conversation.")


def _frame(counts: Row, address: str | None, *, inside: bool = False) -> dict[str, Any]:
    return {"counts": counts, "address": address or "", "inside": inside, "preview": preview}


def _next(rows: list[Row], address: str | None) -> str | None:
    if len(rows) <= _PAGE:
        return None
    query = {"cursor": Cursor.encode(rows[_PAGE - 1]["seq"])} | ({"address": address} if address else {})
    return f"/mailbox?{urlencode(query)}"
