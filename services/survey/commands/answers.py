"""Records what customers answer: first answers, revisions, retries, quarantine (rules 1 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from psycopg2.extras import Json

from services.survey import facts
from services.survey.domain import answer as rules
from services.survey.domain.answer import Click, Recorded
from shared.db import Row, Statement, Tx
from shared.errors import Gone, Invalid, NotFound
from shared.ids import hash_token

Source = Literal["page", "sms", "api"]


@dataclass(frozen=True, slots=True)
class Form:
    """What was sent. `comment` and `callback` are left as recorded when their `set_…` is false.

    `nonce` is the form's own; `seen` the version it showed (None: whatever is recorded, for texts and
    scripts, which see no form). `from_mail` says that the score came with the mail's link.
    """

    nonce: str
    seen: int | None
    score: int | None = None
    comment: str | None = None
    set_comment: bool = False
    callback: str | None = None
    set_callback: bool = False
    from_mail: bool = False
    source: Source = "page"
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a form did, and the answer as it stands now."""

    effect: rules.Effect
    response_id: str
    customer_id: str
    invitation_id: str
    recorded: Recorded
    state: str
    test: bool


_BY_TOKEN = Statement(
    "SELECT id FROM customer WHERE id = (SELECT customer_id FROM token"
    " WHERE hash = %(hash)s AND purpose = 'answer' AND expires_at > %(now)s) FOR NO KEY UPDATE"
)
_BY_INVITATION = Statement(
    "SELECT id FROM customer WHERE id = (SELECT customer_id FROM invitation WHERE id = %(invitation)s)"
    " FOR NO KEY UPDATE"
)

_STATE = f"""SELECT i.expires_at, r.id AS response_id, coalesce(r.version, 0) AS version, r.score, r.comment,
    r.callback, r.answered_at, r.revised_at, r.state, r.state_reason, r.state_by,
    EXISTS (SELECT 1 FROM response_version v WHERE v.response_id = r.id AND v.nonce = %(nonce)s)
        AS nonce_known,
    (SELECT jsonb_agg(jsonb_build_array(k.kind, k.score, extract(epoch FROM k.at)))
     FROM click k WHERE k.invitation_id = i.id AND k.at > %(since)s) AS clicks,
    {facts.ABOUT}
    FROM invitation i {facts.ABOUT_JOINS} LEFT JOIN response r ON r.invitation_id = i.id"""  # noqa: S608
_STATE_BY_TOKEN = Statement(
    _STATE + " WHERE i.id = (SELECT invitation_id FROM token"  # noqa: S608
    " WHERE hash = %(hash)s AND purpose = 'answer' AND expires_at > %(now)s)"
)
_STATE_BY_INVITATION = Statement(_STATE + " WHERE i.id = %(invitation)s")

_SAVE = Statement("""WITH saved AS (
    INSERT INTO response (id, version, invitation_id, customer_id, score, comment, callback,
                          answered_at, revised_at, source, state, state_reason, state_by)
    VALUES (%(id)s, %(version)s, %(invitation_id)s, %(customer_id)s, %(score)s, %(comment)s, %(callback)s,
            %(answered_at)s, %(at)s, %(source)s, %(state)s, %(state_reason)s, %(state_by)s)
    ON CONFLICT (invitation_id) DO UPDATE SET version = EXCLUDED.version, score = EXCLUDED.score,
        comment = EXCLUDED.comment, callback = EXCLUDED.callback, revised_at = EXCLUDED.revised_at,
        source = EXCLUDED.source, state = EXCLUDED.state, state_reason = EXCLUDED.state_reason,
        state_by = EXCLUDED.state_by
    RETURNING id, version), kept AS (
    INSERT INTO response_version (response_id, version, score, comment, callback, at, source, nonce)
    SELECT id, version, %(score)s, %(comment)s, %(callback)s, %(at)s, %(source)s, %(nonce)s FROM saved)
    INSERT INTO click (id, invitation_id, kind, score, at, evidence)
    VALUES (%(click)s, %(invitation_id)s, 'confirmed', %(score)s, %(at)s, %(evidence)s)""")


_NOTE = Statement(
    "INSERT INTO click (id, invitation_id, kind, score, at, evidence)"
    " SELECT %(id)s::uuid, invitation_id, 'get', %(score)s::smallint, %(at)s::timestamptz,"
    " %(evidence)s::jsonb"
    " FROM token WHERE hash = %(hash)s AND purpose = 'answer'"
)


def record_by_token(tx: Tx, token: str, form: Form) -> Outcome:
    """Records what the answer page of `token` sent.

    Raises `NotFound` for an unknown token, `Gone` when answering is over, `Invalid` without any score.
    """
    args = {"hash": hash_token(token), "now": tx.now, "nonce": form.nonce, "since": tx.now - rules.DECOY}
    # The lock first, the state by a statement of its own: what a statement joins is from before it waited.
    tx.later(_BY_TOKEN, args)
    return _record(tx, tx.one(_STATE_BY_TOKEN, args), form)


def record_by_invitation(tx: Tx, invitation_id: str, form: Form) -> Outcome:
    """Records a text's or a script's answer to an invitation; raises as `record_by_token` does."""
    args = {"invitation": invitation_id, "nonce": form.nonce, "since": tx.now - rules.DECOY}
    tx.later(_BY_INVITATION, args)
    row = tx.one(_STATE_BY_INVITATION, args)
    if row is None:
        raise NotFound("There is no such invitation.")
    return _record(tx, row, form)


def _record(tx: Tx, row: Row | None, form: Form) -> Outcome:
    if row is None:
        raise NotFound("This link leads nowhere.")
    recorded = Recorded(row["version"], row["score"], row["comment"], row["callback"])
    wanted = _wanted(recorded, form)
    seen = recorded.version if form.seen is None else form.seen
    effect = rules.effect(recorded, seen, row["nonce_known"], wanted)
    if effect == "retry":
        return _outcome(effect, row, recorded)
    if row["expires_at"] <= tx.now:
        raise Gone("This question is closed.")
    if effect == "stale":
        return _stale(tx, row, recorded, wanted, form)
    if wanted.score is None:
        raise Invalid("Choose a number from 0 to 10 first.", slug="score-missing")
    state, reason, by = _state(row, wanted, form, tx.now)
    if effect == "same" and state == row["state"]:
        return _outcome(effect, row, recorded)
    saved = row | {
        "response_id": row["response_id"] or tx.ids.new(),
        "version": recorded.version + 1,
        "score": wanted.score,
        "comment": wanted.comment,
        "callback": wanted.callback,
        "answered_at": row["answered_at"] or tx.now,
        "revised_at": tx.now,
        "source": form.source,
        "state": state,
        "state_reason": reason,
        "state_by": by,
    }
    evidence = Json(dict(form.evidence))
    tx.later(
        _SAVE,
        saved
        | {
            "id": saved["response_id"],
            "at": tx.now,
            "nonce": form.nonce,
            "click": tx.ids.new(),
            "evidence": evidence,
        },
    )
    facts.publish(tx, [facts.response_event(saved)])
    return _outcome(effect, saved, replace(wanted, version=saved["version"]))


def _wanted(recorded: Recorded, form: Form) -> Recorded:
    return Recorded(
        recorded.version,
        recorded.score if form.score is None else form.score,
        rules.tidy_comment(form.comment) if form.set_comment else recorded.comment,
        form.callback if form.set_callback else recorded.callback,
    )


def _state(row: Row, wanted: Recorded, form: Form, now: datetime) -> tuple[str, str | None, str | None]:
    """State, reason and who decided it, for the version about to be kept."""
    if row["state"] == "excluded":  # a person's decision outlasts a revision
        return "excluded", row["state_reason"], row["state_by"]
    if row["test"]:
        return "excluded", "test", None
    if form.source == "page":
        why = rules.suspicion(_clicks(row), now, wanted.score, from_mail=form.from_mail)
        if why:
            return "quarantined", why, None
    return "counted", None, None


def _clicks(row: Row) -> list[Click]:
    return [
        Click(kind, score, datetime.fromtimestamp(float(at), UTC)) for kind, score, at in row["clicks"] or []
    ]


def _stale(tx: Tx, row: Row, recorded: Recorded, wanted: Recorded, form: Form) -> Outcome:
    """An old form changes nothing; another score of the same mail within seconds taints the recorded one."""
    at_once = row["revised_at"] is not None and tx.now - row["revised_at"] <= rules.CONTRADICTION
    if form.from_mail and at_once and row["state"] == "counted" and wanted.score != recorded.score:
        row = quarantine(tx, row, "contradiction")
        recorded = replace(recorded, version=row["version"])
    return _outcome("stale", row, recorded)


def quarantine(tx: Tx, row: Row, reason: str) -> Row:
    """Sets a counted answer aside; the caller holds the customer's lock; `row` is of `facts.RESPONSES`."""
    row = row | {
        "version": row["version"] + 1,
        "state": "quarantined",
        "state_reason": reason,
        "state_by": None,
        "revised_at": tx.now,
        "source": row.get("source") or "page",
    }
    tx.execute(
        "UPDATE response SET version = %s, state = 'quarantined', state_reason = %s, state_by = NULL,"
        " revised_at = %s"
        " WHERE id = %s",
        (row["version"], reason, tx.now, row["response_id"]),
    )
    facts.publish(tx, [facts.response_event(row)])
    return row


def _outcome(effect: rules.Effect, row: Row, recorded: Recorded) -> Outcome:
    return Outcome(
        effect,
        str(row["response_id"]),
        str(row["customer_id"]),
        str(row["invitation_id"]),
        recorded,
        row["state"] or "",
        row["test"],
    )


def decoy(tx: Tx, token: str, evidence: Mapping[str, Any]) -> None:
    """The form that only machines see was sent: taints the answers a minute before and after it.

    Raises `NotFound` for an unknown token.
    """
    digest = hash_token(token)
    if tx.one(_BY_TOKEN, {"hash": digest, "now": tx.now}) is None:
        raise NotFound("This link leads nowhere.")
    invitation_id = tx.value("SELECT invitation_id FROM token WHERE hash = %s", (digest,))
    _add_click(tx, invitation_id, "decoy", None, evidence)
    row = tx.one(facts.RESPONSES + " WHERE i.id = %s", (invitation_id,))
    if (
        row
        and row["state"] == "counted"
        and row["source"] == "page"
        and tx.now - row["revised_at"] <= rules.DECOY
    ):
        quarantine(tx, row, "decoy")


def add_evidence(tx: Tx, token: str, score: int | None, evidence: Mapping[str, Any]) -> None:
    """Notes that a link was opened. Never an answer (rule 6); an unknown token leaves nothing."""
    # Best effort: nobody waits for the disk to have it.
    tx.later("SET LOCAL synchronous_commit = off")
    tx.later(
        _NOTE,
        {
            "id": tx.ids.new(),
            "score": score,
            "at": tx.now,
            "evidence": Json(dict(evidence)),
            "hash": hash_token(token),
        },
    )


def _add_click(tx: Tx, invitation_id: str, kind: str, score: int | None, evidence: Mapping[str, Any]) -> None:
    tx.execute(
        "INSERT INTO click (id, invitation_id, kind, score, at, evidence) VALUES (%s, %s, %s, %s, %s, %s)",
        (tx.ids.new(), invitation_id, kind, score, tx.now, Json(dict(evidence))),
    )
