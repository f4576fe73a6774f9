"""Where a customer's "did it help?" arrives: the trail page of survey posts it with a small signed leave."""

from __future__ import annotations

import re

from flask import Blueprint, Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from services.followup.commands import notices
from shared.errors import Invalid
from shared.web import public, rate_limit, service
from shared.web.capability import read

bp = Blueprint("followup_notice_answer", __name__)

# Back to the page it came from, and nowhere else.
_TRAIL = re.compile(r"/a/[A-Za-z0-9_-]{1,64}(\?[A-Za-z0-9_=&%.-]{0,200})?")


@bp.post("/followup/n")
@public(csrf=False)
def helped() -> AnyResponse:
    """Notes "yes" or "no"; a later answer replaces an earlier one. 303 to `next` for a form, else 204.

    Raises `Gone` a day after the page was opened, `Invalid` for anything else than yes or no.
    """
    notice_id = str(read("notice-answer", request.form.get("capability", "")).get("notice", ""))
    rate_limit(f"notice:{notice_id}", 30, 60)
    answer = request.form.get("helped")
    if answer not in ("yes", "no"):
        raise Invalid("Please say yes or no.", fields={"helped": "yes or no"})
    with service().db.transaction() as tx:
        notices.answer(tx, notice_id, answer == "yes")
    back = request.form.get("next", "")
    if _TRAIL.fullmatch(back):
        return redirect(back, 303)
    return Response(status=204)
