"""The inbox: who waits for a call, the most urgent words first."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, redirect, render_template, request

from services.followup.commands import unconfirmed
from services.followup.pages.task import detail
from services.followup.queries import inbox, staff, tasks
from services.followup.who import by
from shared.errors import NotFound
from shared.ids import is_id
from shared.web import Cursor, allow, flash, service

bp = Blueprint("inbox", __name__)

LIMIT = 30
_TABS = (("all", "All"), ("mine", "Mine"), ("unowned", "Unowned"), ("overdue", "Overdue"))


@bp.get("/followup/inbox")
@allow("agent", "lead", "admin")
def inbox_page() -> Any:
    """The list; on wide screens with its first task beside it."""
    chosen = View.of(request.args)
    if chosen.name == "unhappy":
        return _unhappy(chosen)
    with service().db.transaction() as tx:
        context = listing(tx, chosen)
        first = context["cards"][0]["id"] if context["cards"] and not chosen.cursor else None
        shown = detail(tx, first) if first else {}
    return render_template("followup/inbox.html", **context, **shown, page="inbox")


@bp.post("/followup/unconfirmed/<uuid:invitation>/dismiss")
@allow("agent", "lead", "admin")
def dismiss(invitation: Any) -> Any:
    """Takes one off the list of the perhaps unhappy."""
    with service().db.transaction() as tx:
        unconfirmed.dismiss(tx, by(), str(invitation))
    flash("Taken off the list. You can put it back at the end of the list.")
    return redirect("/followup/inbox?view=unhappy", 303)


@bp.post("/followup/unconfirmed/<uuid:invitation>/restore")
@allow("agent", "lead", "admin")
def restore(invitation: Any) -> Any:
    """Puts it back."""
    with service().db.transaction() as tx:
        unconfirmed.dismiss(tx, by(), str(invitation), undo=True)
    flash("It is on the list again.")
    return redirect("/followup/inbox?view=unhappy", 303)


class View:
    """Which list: its name, perhaps one owner's only, and from where on. The URL carries it."""

    def __init__(self, name: str, owner: str | None, cursor: str | None) -> None:
        self.name, self.owner, self.cursor = name, owner, cursor

    @classmethod
    def of(cls, args: Any) -> View:
        """From a query; what it does not know is the whole list."""
        name = args.get("view", "all")
        owner = args.get("owner") or None
        if owner is not None and not is_id(owner):
            raise NotFound("There is no such person here.")
        return cls(name if name in (*tasks.VIEWS, "unhappy") else "all", owner, args.get("cursor") or None)

    def query(self, **more: str | None) -> str:
        """The query that leads back here, with a question mark; empty for the whole list."""
        values = {"view": self.name if self.name != "all" else None, "owner": self.owner, **more}
        kept = {name: value for name, value in values.items() if value}
        return f"?{urlencode(kept)}" if kept else ""


def listing(tx: Any, view: View) -> dict[str, Any]:
    """What the list side of inbox and task pages shows."""
    me = by()
    after = Cursor.decode(view.cursor, 2)
    found = tasks.cards(tx, me, view=view.name, owner_id=view.owner, after=after, limit=LIMIT + 1)
    more = found[LIMIT:]
    found = found[:LIMIT]
    counts = tasks.counts(tx, me)
    unhappy = inbox.count_perhaps_unhappy(tx, me)
    tabs: list[tuple[str, int | None, str, bool]] = [
        (
            text,
            counts[name],
            f"/followup/inbox{View(name, None, None).query()}",
            view.name == name and not view.owner,
        )
        for name, text in _TABS
    ]
    tabs.append(("Perhaps unhappy", unhappy, "/followup/inbox?view=unhappy", view.name == "unhappy"))
    tabs.append(("Closed", None, "/followup/inbox?view=closed", view.name == "closed"))
    owner = staff.person(tx, view.owner) if view.owner else None
    cursor = Cursor.encode(*tasks.position(found[-1], view.name)) if more else None
    return {
        "cards": found,
        "counts": counts,
        "unhappy_count": unhappy,
        "tabs": tabs,
        "view": view,
        "owner": owner,
        "next_url": f"/followup/inbox{view.query(cursor=cursor)}" if cursor else None,
    }


def _unhappy(view: View) -> Any:
    with service().db.transaction() as tx:
        context = listing(tx, View("unhappy", None, None)) | {"cards": []}
        rows = inbox.perhaps_unhappy(tx, by())
        dismissed = inbox.perhaps_unhappy(tx, by(), dismissed=True, limit=20)
    return render_template("followup/unhappy.html", **context, rows=rows, dismissed=dismissed)
