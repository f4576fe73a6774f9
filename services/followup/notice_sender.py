"""Sends notices: under survey's permits, in the customer's language, on the channel the permit grants."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from services.followup.commands import notices
from services.followup.notice_mail import Content, write
from services.followup.permits import SurveyPermits
from services.followup.queries import company
from shared.channels import Message, transport
from shared.channels.ledger import Delivery
from shared.channels.sender import Outcome, Permit, Permits, Sender
from shared.db import Row, Tx
from shared.errors import Unavailable
from shared.roles import Loop, RoleContext, every

log = structlog.get_logger("hearback.notices")

# What survey wants to hear. A refusal was survey's own word; "returned" did not leave and will ask again.
_RESULTS = {"handed": "handed", "failed": "failed", "uncertain": "uncertain", "returned": "later"}
_SETTLED = "settled"
_TELL_AT_ONCE = 200


def sender_loop(context: RoleContext) -> Loop:
    """The part of followup's sender role that sends notices."""
    return every(0.1, NoticeSender(context).step, "notices")


class NoticeSender:
    """One sender of notices; several may run.

    Survey is told of every hand-over at once. What it could not be told is kept in `permit_result` and
    told before the next permits are asked for, so survey never sees a second request for a message
    whose first permit it still believes to be out.
    """

    def __init__(self, context: RoleContext) -> None:
        self.context = context
        self.survey = SurveyPermits(context.settings, context.clock)
        self._channels: dict[str, str] = {}
        self._sender = Sender(
            db=context.db,
            clock=context.clock,
            kinds=("notice",),
            transport=lambda channel: transport(context.settings, channel),
            permits=self._permits,
            render=self._render,
            settled=self._settled,
            afterwards=self._tell,
            only_own=True,
        )

    def step(self) -> bool:
        """One batch; returns whether there may be more to do at once."""
        more = self._sender.step()
        if not more:
            self._tell_left_over()
        return more

    def _permits(self, batch: Sequence[Delivery]) -> Permits:
        self._channels.clear()
        self._tell_waiting()
        with self.context.db.transaction() as tx:
            rows = {row["delivery_id"]: row for row in _contents(tx, [one.id for one in batch])}
            settings = company.settings(tx)
        stale = {one.id: _stale(rows.get(one.id)) for one in batch}
        refused = {delivery: reason for delivery, reason in stale.items() if reason}
        requests = [
            {
                "id": one.id,
                "kind": "notice",
                "ref_id": one.ref_id,
                "customer_id": one.customer_id,
                "response_id": rows[one.id]["response_id"],
                "prefer_channel": rows[one.id]["asked_on"],
            }
            for one in batch
            # Without its answer (replicas are being filled again) a notice waits a little.
            if one.id not in refused and rows[one.id]["answer_state"] is not None
        ]
        granted, no = self.survey.take(requests) if requests else ({}, {})
        self._channels.update({delivery: permit["channel"] for delivery, permit in granted.items()})
        return Permits(
            {
                delivery: Permit(
                    permit["to"],
                    permit["name"] or "",
                    {"permit": permit, "content": _content(rows[delivery], settings)},
                    permit["channel"],
                )
                for delivery, permit in granted.items()
            },
            {**refused, **no},
        )

    def _render(self, delivery: Delivery, leave: Permit) -> Message:
        permit, content = leave.data["permit"], leave.data["content"]
        written = write(
            content,
            channel=permit["channel"],
            language=permit["language"],
            name=permit["name"],
            links=permit["links"],
        )
        here = content.company
        return Message(
            delivery_id=delivery.id,
            channel=permit["channel"],
            to=leave.address,
            to_name=leave.name,
            subject=written.subject,
            text=written.text,
            html=written.html,
            headers=written.headers,
            sender_name=here["sender_name"] or here["name"],
            sender_email=here["sender_email"],
            reply_to=here["reply_to"],
        )

    def _settled(self, tx: Tx, outcomes: Sequence[Outcome]) -> None:
        for outcome in sorted(outcomes, key=lambda outcome: outcome.delivery.customer_id or ""):
            self._note(tx, outcome)
        tx.values(
            "INSERT INTO permit_result (delivery_id, result, provider_id, reason, at) VALUES %s"
            " ON CONFLICT (delivery_id) DO UPDATE SET result = excluded.result,"
            " provider_id = excluded.provider_id, reason = excluded.reason, at = excluded.at",
            [
                (one.delivery.id, _result(one), one.provider_id, one.reason, tx.now)
                for one in outcomes
                if _result(one)
            ],
        )

    def _note(self, tx: Tx, outcome: Outcome) -> None:
        delivery = outcome.delivery
        channel = self._channels.get(delivery.id, delivery.channel)
        if outcome.result in ("handed", "uncertain"):
            tx.execute("UPDATE delivery SET channel = %s WHERE id = %s", (channel, delivery.id))
        if outcome.result == "handed":
            notices.sent(tx, delivery.ref_id, delivery.id, channel, tx.now)
        elif outcome.result == "failed":
            notices.skip(tx, delivery.ref_id, "failed", state="failed")
        elif outcome.result == "uncertain":
            notices.uncertain(tx, delivery.id)
        elif outcome.result == "refused" and outcome.reason == _SETTLED:
            # Survey closed this permit while we could not reach it, and nothing was handed over.
            notices.take_another_delivery(tx, delivery.ref_id)
        elif outcome.result == "refused":
            notices.skip(tx, delivery.ref_id, outcome.reason or "refused")

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        """Right after a hand-over; survey being away is no reason to stop, the result is kept."""
        try:
            self._tell_waiting([one.delivery.id for one in outcomes if _result(one)])
        except Unavailable as error:
            log.warning("notices.not_settled", error=error.message)

    def _tell_left_over(self) -> None:
        with self.context.db.transaction() as tx:
            waits = tx.one("SELECT 1 FROM permit_result LIMIT 1")
        if waits:
            try:
                self._tell_waiting()
            except Unavailable as error:
                log.warning("notices.not_settled", error=error.message)

    def _tell_waiting(self, only: list[str] | None = None) -> None:
        """Tells survey what it has not been told yet, oldest first. Raises `Unavailable`."""
        while only is None or only:
            with self.context.db.transaction() as tx:
                rows = tx.all(
                    "SELECT delivery_id, result, provider_id, reason, at FROM permit_result"
                    " WHERE %(only)s::uuid[] IS NULL OR delivery_id = ANY(%(only)s::uuid[])"
                    " ORDER BY at, delivery_id LIMIT %(limit)s",
                    {"only": only, "limit": _TELL_AT_ONCE},
                )
            if not rows:
                return
            self.survey.settle(
                [
                    {
                        "id": row["delivery_id"],
                        "result": row["result"],
                        "provider_id": row["provider_id"],
                        "reason": row["reason"],
                    }
                    for row in rows
                ]
            )
            with self.context.db.transaction() as tx:
                tx.values(
                    "DELETE FROM permit_result p USING (VALUES %s) AS told (id, at)"
                    " WHERE p.delivery_id = told.id AND p.at = told.at",
                    [(row["delivery_id"], row["at"]) for row in rows],
                    template="(%s::uuid, %s::timestamptz)",
                )


def _result(outcome: Outcome) -> str | None:
    if outcome.result == "refused":
        return "failed" if outcome.reason == _SETTLED else None
    return _RESULTS[outcome.result]


def _contents(tx: Tx, delivery_ids: list[str]) -> list[Row]:
    return tx.all(
        """
        SELECT n.delivery_id, n.id, n.quote, n.response_id, c.title, c.was_wrong, c.is_different, c.language,
               c.state AS change_state, r.score, r.answered_at, r.state AS answer_state, r.channel AS asked_on
        FROM notice n JOIN change c ON c.id = n.change_id LEFT JOIN response r ON r.id = n.response_id
        WHERE n.delivery_id = ANY(%s::uuid[]) AND n.state = 'queued'
        """,
        (delivery_ids,),
    )


def _stale(row: Row | None) -> str | None:
    """Why a queued notice is not to be sent any more, whatever survey would say."""
    if row is None:
        return "overtaken"
    if row["change_state"] != "published":
        return "withdrawn"
    return "excluded" if row["answer_state"] not in ("counted", None) else None


def _content(row: Row, settings: dict[str, object]) -> Content:
    return Content(
        notice_id=row["id"],
        title=row["title"],
        was_wrong=row["was_wrong"],
        is_different=row["is_different"],
        change_language=row["language"],
        quote=row["quote"] or "",
        score=row["score"],
        answered_at=row["answered_at"],
        company=settings,
    )
