"""Sends notices: under survey's permits, in the customer's language, on the channel the permit grants."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from services.followup.commands import notices
from services.followup.notice_mail import Content, write
from services.followup.permits import SurveyPermits
from services.followup.queries import company
from shared.channels import CHANNELS, Channel, Message, transport
from shared.channels.ledger import Delivery
from shared.channels.sender import Outcome, Permit, Permits, Sender
from shared.db import Row, Tx
from shared.errors import Unavailable
from shared.roles import Loop, RoleContext, every, together

log = structlog.get_logger("hearback.notices")

# Survey has closed the permit, though nothing was handed over: its answer got lost, and a minute passed.
_SETTLED = "settled"
# A permit without a trail link: survey has no such answer (any more).
_NO_ANSWER = "no_invitation"
_TELL_AT_ONCE = 100
# So long survey is left alone when it did not answer.
_PAUSE_SECONDS = 1.0


def sender_loop(context: RoleContext) -> Loop:
    """The part of followup's sender role that sends notices, each channel by itself."""
    return together(
        *(every(0.1, NoticeSender(context, channel).step, f"notices, {channel}") for channel in CHANNELS)
    )


class NoticeSender:
    """One sender of notices; several may run.

    Survey is told of every hand-over at once. What it could not be told is kept in `permit_result` and
    told before the next permits are asked for; a message about which something is still to be told gets
    no new permit. A call that we gave up may still reach survey later: each permit is asked for, and
    settled, by the time of the message's claim, so a late word never hits a later permit of the message.
    With a `channel` it sends what is to go out there: a permit for the other one is given back, and the
    message left to the sender of that.
    """

    def __init__(self, context: RoleContext, channel: Channel | None = None) -> None:
        self.context = context
        self.channel = channel
        self.survey = SurveyPermits(context.settings, context.clock)
        self._channels: dict[str, str] = {}
        self._pause_until = float("-inf")
        self._sender = Sender(
            db=context.db,
            clock=context.clock,
            kinds=("notice",),
            channel=channel,
            transport=lambda channel: transport(context.settings, channel),
            permits=self._permits,
            render=self._render,
            settled=self._settled,
            lock=lambda tx, deliveries: notices.lock(
                tx, [(one.id, one.ref_id, one.customer_id) for one in deliveries]
            ),
            afterwards=self._tell,
            only_own=True,
        )

    def step(self) -> bool:
        """One batch; returns whether there may be more to do at once."""
        if self.context.clock.monotonic() < self._pause_until:
            return False
        more = self._sender.step()
        if not more:
            self._tell_left_over()
        return more

    def _permits(self, batch: Sequence[Delivery]) -> Permits:
        try:
            return self._ask(batch)
        except Unavailable:
            self._pause_until = self.context.clock.monotonic() + _PAUSE_SECONDS
            raise

    def _ask(self, batch: Sequence[Delivery]) -> Permits:
        self._channels.clear()
        self._tell_waiting()
        with self.context.db.transaction() as tx:
            rows = {row["delivery_id"]: row for row in _contents(tx, [one.id for one in batch])}
            settings = company.settings(tx)
            open_ends = {
                row["delivery_id"]
                for row in tx.all(
                    "SELECT delivery_id FROM permit_result WHERE delivery_id = ANY(%s::uuid[])",
                    ([one.id for one in batch],),
                )
            }
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
                "claim": _claim(one),
            }
            for one in batch
            # Without its answer (replicas are being filled again) a notice waits a little.
            if one.id not in refused and one.id not in open_ends and rows[one.id]["answer_state"] is not None
        ]
        permits, no = self.survey.take(requests) if requests else ({}, {})
        granted = {delivery: permit for delivery, permit in permits.items() if "trail" in permit["links"]}
        refused |= dict.fromkeys(permits.keys() - granted.keys(), _NO_ANSWER)
        self._channels.update({delivery: permit["channel"] for delivery, permit in granted.items()})
        if self.channel:
            granted = {id: permit for id, permit in granted.items() if permit["channel"] == self.channel}
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
            "INSERT INTO permit_result (delivery_id, result, provider_id, reason, claim, at) VALUES %s"
            " ON CONFLICT (delivery_id) DO UPDATE SET result = excluded.result,"
            " provider_id = excluded.provider_id, reason = excluded.reason, claim = excluded.claim,"
            " at = excluded.at"
            # While survey is away a message comes back again and again; the permit is of its first claim.
            " WHERE excluded.result <> 'returned'",
            [
                (
                    one.delivery.id,
                    _result(one),
                    one.provider_id,
                    one.reason,
                    # Which claim the permit was for that survey has closed nobody here knows any more.
                    None if one.reason == _SETTLED else _claim(one.delivery),
                    tx.now,
                )
                for one in outcomes
                if _result(one)
            ],
        )

    def _note(self, tx: Tx, outcome: Outcome) -> None:
        delivery = outcome.delivery
        channel = self._channels.get(delivery.id, delivery.channel)
        if outcome.result in ("handed", "uncertain", "returned") and channel != delivery.channel:
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
        try:
            self._tell_waiting()
        except Unavailable as error:
            log.warning("notices.not_settled", error=error.message)

    def _tell_waiting(self, only: list[str] | None = None) -> None:
        """Tells survey what it has not been told yet, oldest first. Raises `Unavailable`.

        The rows stay locked while survey is told, so that two senders do not tell the same at different
        times; survey is one of us and answers within seconds, or not at all.
        """
        while only is None or only:
            with self.context.db.transaction() as tx:
                rows = tx.all(
                    "SELECT delivery_id AS id, result, provider_id, reason, claim FROM permit_result"
                    " WHERE %(only)s::uuid[] IS NULL OR delivery_id = ANY(%(only)s::uuid[])"
                    " ORDER BY at, delivery_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED",
                    {"only": only, "limit": _TELL_AT_ONCE},
                )
                if not rows:
                    return
                self.survey.settle(rows)
                tx.execute(
                    "DELETE FROM permit_result WHERE delivery_id = ANY(%s::uuid[])",
                    ([row["id"] for row in rows],),
                )


def _claim(delivery: Delivery) -> str | None:
    """Which of a message's claims this is; None after a crash, when nobody knows any more."""
    return delivery.claimed_at.isoformat() if delivery.claimed_at else None


def _result(outcome: Outcome) -> str | None:
    """What survey is to be told; None when it has no permit out, because it refused one or was not asked."""
    if outcome.result != "refused":
        return outcome.result
    return "returned" if outcome.reason in (_SETTLED, _NO_ANSWER) else None


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
