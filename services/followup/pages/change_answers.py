"""The page on which a person looks for answers that a change concerns, and ties them to its theme."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from services.followup.commands import themes as commands
from services.followup.queries import audience
from services.followup.queries import changes as queries
from services.followup.who import by
from shared.errors import Conflict, Invalid
from shared.web import allow, flash, service

bp = Blueprint("followup_change_answers", __name__)
_HERE = "/followup/changes/<change_id>/answers"


@bp.get(_HERE)
@allow("lead", "admin")
def search(change_id: str) -> str:
    words = request.args.get("q", "").strip()[:200]
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        found = queries.search_answers(tx, change_id, words)
        size = audience.size(tx, change)
    return render_template(
        "followup/change_answers.html",
        change=change,
        q=words,
        answers=found,
        size=size,
        choices=[(theme["id"], theme["name"]) for theme in change["themes"]],
    )


@bp.post(_HERE)
@allow("lead", "admin")
def tie(change_id: str) -> Response:
    theme, chosen = request.form.get("theme", ""), request.form.getlist("response")
    with service().db.transaction() as tx:
        change = queries.one(tx, change_id)
        if change["state"] == "withdrawn":
            raise Conflict("This change is withdrawn; nobody is told of it.")
        themes = [one["id"] for one in change["themes"]]
        if "untie" in request.form:
            for one in themes:
                commands.untie(tx, one, request.form["untie"])
            flash("Taken out again.")
        elif theme not in themes:
            raise Invalid("Choose one of the change's themes.", fields={"theme": "Choose a theme."})
        elif chosen:
            tied = commands.tie(tx, theme, chosen, by().staff_id)
            flash(f"{tied} {'answer is' if tied == 1 else 'answers are'} tied to the theme.")
        else:
            flash("Nothing was ticked, so nothing was tied.", "note")
    words = request.form.get("q", "").strip()[:200]
    return redirect(
        f"/followup/changes/{change_id}/answers" + (f"?{urlencode({'q': words})}" if words else ""), 303
    )
