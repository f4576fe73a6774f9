"""What a customer will read: the notice of a change written as it would be sent, for its preview."""

from __future__ import annotations

from flask import Blueprint, Response, request

from services.followup.domain.change import LANGUAGES, QUOTE_LENGTH
from services.followup.domain.quote import trim
from services.followup.notice_mail import Content, Written, write
from services.followup.queries import audience, changes, company
from shared.channels.gsm import segments
from shared.db import Row, Tx
from shared.web import allow, csp_replace, service

bp = Blueprint("followup_previews", __name__)

# A message's own styles, and nothing from anywhere else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"


@bp.get("/followup/changes/<change_id>/mail")
@allow("lead", "admin")
def mail(change_id: str) -> Response:
    """The mail in HTML, to the first customer of the audience, in `?language=`; its links lead nowhere."""
    language = request.args.get("language", "")
    with service().db.transaction() as tx:
        change = changes.one(tx, change_id)
        people = audience.people(tx, change, limit=50)
        written = _written(tx, change, telling(people), "email", language)
    csp_replace(_POLICY)
    return Response(written.html, content_type="text/html; charset=utf-8")


def telling(people: list[Row]) -> Row | None:
    """Somebody to show the message with: best one whom it quotes, and reaches."""
    return max(people, key=lambda one: (bool(one["comment"]), one["unreachable"] is None), default=None)


def previews(tx: Tx, change: Row, person: Row | None) -> list[dict[str, object]]:
    """The notice in each language ({language, name, subject, text, sms, segments}), to `person` of the
    audience, or to nobody in particular."""
    found = []
    for language, name in LANGUAGES.items():
        mail = _written(tx, change, person, "email", language)
        sms = _written(tx, change, person, "sms", language)
        found.append(
            {
                "language": language,
                "name": name,
                "subject": mail.subject,
                "text": mail.text,
                "sms": sms.text,
                "segments": segments(sms.text),
            }
        )
    return found


def _written(tx: Tx, change: Row, person: Row | None, channel: str, language: str) -> Written:
    here = service()
    sample = f"{here.settings.public_url}/a/{'x' * 22}"
    content = Content(
        notice_id=change["id"],
        title=change["title"],
        was_wrong=change["was_wrong"],
        is_different=change["is_different"],
        change_language=change["language"],
        quote=trim(person["comment"], QUOTE_LENGTH) if person else "",
        score=person["score"] if person else 5,
        answered_at=person["answered_at"] if person else tx.now,
        company=company.settings(tx),
    )
    return write(
        content,
        channel=channel,
        language=language,
        name=person["name"] if person else None,
        links={
            "trail": sample,
            "preferences": f"{here.settings.public_url}/u/{'x' * 22}",
            "unsubscribe": f"{here.settings.public_url}/u/{'x' * 22}/unsubscribe",
        },
    )
