"""Where a customer's "did it help?" arrives: the trail page of survey posts it with a small signed leave."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from services.followup.commands import notices
from services.followup.domain.change import LANGUAGES
from services.followup.notice_words import language_of, words
from shared.errors import Gone, HearbackError, Invalid, TooMany, Unavailable
from shared.web import csp_nonce, problems, public, rate_limit, service
from shared.web.capability import DAY, read
from shared.web.problems import wants_json

bp = Blueprint("followup_notice_answer", __name__)

# Back to the page it came from, and nowhere else.
_TRAIL = re.compile(r"/a/[A-Za-z0-9_-]{1,64}(\?[A-Za-z0-9_=&%.-]{0,200})?")


@bp.post("/followup/n")
@public(csrf=False)
def helped() -> AnyResponse:
    """Notes "yes" or "no"; a later answer replaces an earlier one. 303 to `next` for a form, else 204.

    Raises `Gone` a day after the page was opened, `Invalid` for anything else than yes or no.
    """
    leave = request.form.get("capability", "")
    try:
        notice_id = _notice(leave)
    except Gone:
        back = _back()
        if wants_json() or back is None:
            raise
        # Their page is older than a day: a new one asks the same.
        asked = {"n": _notice(leave, 366 * DAY), "helped": request.form.get("helped", "")}
        return redirect(f"{back.split('?')[0]}?{urlencode(asked)}", 303)
    rate_limit(f"notice:{notice_id}", 30, 60)
    answer = request.form.get("helped")
    if answer not in ("yes", "no"):
        raise Invalid("Please say yes or no.", fields={"helped": "yes or no"})
    with service().db.transaction() as tx:
        notices.answer(tx, notice_id, answer == "yes")
    back = _back()
    return Response(status=204) if back is None else redirect(back, 303)


@bp.errorhandler(TooMany)
@bp.errorhandler(Unavailable)
def again(error: HearbackError) -> Any:
    """Who comes while we cannot serve gets a button that says the same again, in their browser's language."""
    if wants_json() or not request.form:
        return problems.of(error)
    language = language_of(request.accept_languages.best_match(LANGUAGES))
    response = make_response(
        render_template(
            "notice_again.html",
            csp=csp_nonce(),
            language=language,
            text=words(language),
            sent={name: request.form.get(name, "") for name in ("capability", "helped", "next")},
        ),
        error.status,
    )
    response.headers["Retry-After"] = str(error.retry_after or 2)
    return response


def _notice(leave: str, max_age: int = DAY) -> str:
    return str(read("notice-answer", leave, max_age).get("notice", ""))


def _back() -> str | None:
    back = request.form.get("next", "")
    return back if _TRAIL.fullmatch(back) else None
