"""Events of all topics become facts, a batch at a time, whatever order the topics come in.

How order between topics does not matter: facts are kept by their own version alone, what derives from
several facts (an invitation's stages) is derived anew whenever one of them changes, and whoever changes one
holds the lock of the invitation while deriving, made as a stub when it is not known yet. Locks are taken in
one order everywhere: tasks, deliveries, notices, responses, invitations, rollups; each by id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from services.reporting.store import answers, facts, journey, staff
from shared.db import Tx
from shared.events.envelope import Event

GROUP = "reporting"
TOPICS = (
    "settings",
    "customers",
    "invitations",
    "responses",
    "deliveries",
    "tasks",
    "changes",
    "notices",
    "staff",
)
_KEYED_BY_CUSTOMER = {"customers", "invitations", "responses", "deliveries", "notices"}
# Shared by ordinary batches; alone for those that touch everything: an erasure must not miss what another
# batch is just writing about its customer, nor a new zone a day that is just being worked out in the old.
GATE = 0x7265_706F_7274


def apply(tx: Tx, events: Sequence[Event]) -> None:
    """Applies a batch. Any order between topics and any repetition end in the same facts and figures."""
    erasures = sorted({event.key for event in events if event.topic == "customers" and event.data is None})
    alone = bool(erasures) or any(event.type == "company.changed" for event in events)
    tx.execute(f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}(%s)", (GATE,))
    if erasures:
        answers.erase(tx, erasures)
    _apply_facts(tx, _by_type(tx, events))


def _by_type(tx: Tx, events: Sequence[Event]) -> dict[str, list[Event]]:
    """The events to apply, by type: none about erased customers."""
    keys = {event.key for event in events if event.topic in _KEYED_BY_CUSTOMER}
    erased = {
        str(row["customer_id"])
        for row in tx.all("SELECT customer_id FROM erased WHERE customer_id = ANY(%s::uuid[])", (list(keys),))
    }
    kinds: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.data is None or (event.topic in _KEYED_BY_CUSTOMER and event.key in erased):
            continue
        # Each task event, and each about one answer, has the whole state: the version says which is newest.
        kind = event.type
        if event.topic in ("tasks", "changes", "notices"):
            kind = event.topic
        elif kind in ("response.recorded", "response.revised", "response.excluded"):
            kind = "responses"
        kinds[kind].append(event)
    return kinds


def _apply_facts(tx: Tx, kinds: dict[str, list[Event]]) -> None:
    if kinds["company.changed"]:
        facts.company(tx, kinds["company.changed"])
    staff.replicate(tx, kinds["staff.changed"], kinds["apikey.changed"])
    for fact, kind in (
        (facts.PROGRAM, "program.changed"),
        (facts.CUSTOMER, "customer.changed"),
        (facts.CHANGE, "changes"),
        (facts.SKIP, "invitation.skipped"),
        (facts.UNCONFIRMED, "response.unconfirmed"),
    ):
        facts.upsert(tx, fact, facts.latest(fact, kinds[kind]))

    touched = answers.tasks(tx, facts.latest(facts.TASK, kinds["tasks"]))

    rows = facts.latest(facts.DELIVERY, kinds["delivery.reported"])
    moved = facts.upsert(tx, facts.DELIVERY, rows)
    reported = [(row["kind"], row["ref_id"]) for row in rows if row["id"] in moved and row["ref_id"]]

    notices = facts.latest(facts.NOTICE, kinds["notices"])
    of_notices = {ref for kind, ref in reported if kind == "notice"}
    facts.stubs(tx, facts.NOTICE, of_notices | {row["id"] for row in notices})
    facts.upsert(tx, facts.NOTICE, notices)
    touched |= answers.responses_of(tx, of_notices | {row["id"] for row in notices})

    responses = facts.latest(facts.RESPONSE, kinds["responses"])
    touched |= {row["id"] for row in responses}
    facts.stubs(tx, facts.RESPONSE, touched)
    sent = facts.latest(facts.INVITATION, kinds["invitation.sent"])
    expired = [
        (str(event.data["invitation_id"]), event.data["at"])
        for event in kinds["invitation.expired"]
        if event.data
    ]
    invitations = {ref for kind, ref in reported if kind == "invitation"}
    invitations |= {row["id"] for row in sent} | {key for key, _ in expired}
    invitations |= {row["invitation_id"] for row in responses} | answers.invitations_of(tx, touched)
    facts.stubs(tx, facts.INVITATION, invitations)

    answers.apply(tx, responses)
    facts.upsert(tx, facts.INVITATION, sent)
    journey.expire(tx, expired)
    journey.refresh(tx, sorted(invitations))
