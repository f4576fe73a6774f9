"""Survey's sender: its invitations and replies, under permits taken in its own database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.survey import messages
from services.survey.addresses import fingerprints
from services.survey.commands import permits, settle
from services.survey.commands.permits import Request
from services.survey.queries.company import company
from shared.channels import Channel, Message, Transport, transport
from shared.channels.ledger import Delivery
from shared.channels.sender import Permit, Permits, Sender
from shared.clock import Clock
from shared.db import Database, Row
from shared.settings import Settings

KINDS = ("invitation", "reply")


def make_sender(
    settings: Settings,
    db: Database,
    clock: Clock,
    transports: Callable[[str], Transport] | None = None,
    channel: Channel | None = None,
) -> Sender:
    """The sender of survey's own messages (of one channel); `transports` stands in for the settings' choice
    in tests.
    """
    known = fingerprints(settings.keys("opt-out"))
    return Sender(
        db=db,
        clock=clock,
        kinds=KINDS,
        channel=channel,
        transport=transports or (lambda channel: transport(settings, channel)),
        permits=lambda batch: _permits(settings, db, batch),
        render=_render,
        settled=lambda tx, outcomes: settle.settled(tx, outcomes, known),
        lock=lambda tx, deliveries: settle.lock(tx, [one.id for one in deliveries]),
    )


def _permits(settings: Settings, db: Database, batch: Sequence[Delivery]) -> Permits:
    requests = [
        Request(one.id, _kind(one), one.ref_id, one.customer_id or "", channel=one.channel, data=one.data)
        for one in batch
        if one.customer_id
    ]
    with db.transaction() as tx:
        granted, refused = permits.take(
            tx, requests, settings.public_url, fingerprints(settings.keys("opt-out"))
        )
        here = company(tx)
        programs = _programs(
            tx.all(
                "SELECT i.id AS invitation_id, p.* FROM invitation i JOIN program p ON p.id = i.program_id"
                " WHERE i.id = ANY(%s::uuid[])",
                ([one.ref_id for one in batch if one.kind == "invitation"],),
            )
        )
    refs = {one.id: one.ref_id for one in batch}
    known = {
        permit.id: Permit(
            permit.to,
            permit.name or "",
            {"permit": permit, "company": here, "program": programs.get(refs[permit.id])},
            permit.channel,
        )
        for permit in granted
    }
    orphans = {one.id: "unknown_customer" for one in batch if not one.customer_id}
    return Permits(known, {refusal.id: refusal.reason for refusal in refused} | orphans)


def _kind(one: Delivery) -> permits.Kind:
    return "invitation" if one.kind == "invitation" else "reply"


def _programs(rows: Sequence[Row]) -> dict[str, Row]:
    return {str(row["invitation_id"]): row for row in rows}


def _render(one: Delivery, permit: Permit) -> Message:
    given: permits.Permit = permit.data["permit"]
    if one.kind == "invitation":
        return messages.invitation(
            delivery_id=one.id,
            channel=given.channel,
            to=given.to,
            name=given.name,
            language=given.language,
            links=given.links,
            program=permit.data["program"],
            company=permit.data["company"],
            test=bool(one.data.get("test")),
        )
    return messages.reply(
        delivery_id=one.id,
        to=given.to,
        name=given.name,
        language=given.language,
        links=given.links,
        company=permit.data["company"],
        data=one.data,
    )
