"""Sends mails to staff: whether they are still news, and what they say, is decided when they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from psycopg2.extras import Json

from services.followup.commands import passwords
from services.followup.commands.tasks import hours
from services.followup.domain.by import By
from services.followup.queries import company, tasks
from shared.channels import Message, ledger, transport
from shared.channels.ledger import Delivery
from shared.channels.sender import Permit, Permits, Sender
from shared.db import Row, Tx
from shared.errors import NotFound
from shared.roles import RoleContext
from shared.web.filters import near

_ANYBODY = By(None, "Hearback")
# Of these the owner alone is told; the others go to whom they name.
_OWNERS = ("opened", "joined", "revised", "assigned", "message", "reminder")
_NEWS = ("opened", "joined", "assigned", "revised")


def make_sender(context: RoleContext) -> Sender:
    """The sender of mails to staff; several may run. They need no permit: colleagues are no customers."""
    mails = StaffMails(context)
    return Sender(
        db=context.db,
        clock=context.clock,
        kinds=("staff",),
        channel="email",
        # Notices have a sender of their own, which knows what hangs on them.
        only_own=True,
        transport=lambda channel: transport(context.settings, channel),
        permits=mails.permits,
        render=mails.render,
        settled=lambda tx, outcomes: None,
    )


class StaffMails:
    """Decides on and writes mails to staff."""

    def __init__(self, context: RoleContext) -> None:
        self.context = context
        self._words = Environment(
            loader=PackageLoader("services.followup", "templates/mail"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def permits(self, batch: Sequence[Delivery]) -> Permits:
        """Grants what is still news, with everything its words need; refuses the rest."""
        granted: dict[str, Permit] = {}
        refused: dict[str, str] = {}
        told: set[tuple[str, str]] = set()
        says: dict[str, Mapping[str, int]] = {}
        with self.context.db.transaction() as tx:
            settings = company.settings(tx)
            # Whatever else is to be told of a task tells its newest words too: revisions come last.
            for delivery in sorted(batch, key=lambda one: one.data["template"] == "revised"):
                who = tx.one("SELECT * FROM staff WHERE id = %s", (delivery.data["staff_id"],))
                reason = _not_to(who)
                facts: dict[str, Any] = {}
                if who and reason is None:
                    reason, facts = self._facts(tx, delivery, who, told)
                if who is None or reason is not None:
                    refused[delivery.id] = reason or "gone"
                    continue
                granted[delivery.id] = Permit(
                    who["email"], who["name"], {**facts, "company": settings, "staff": who}
                )
                if delivery.data["template"] in _NEWS:
                    says[delivery.id] = {str(one["id"]): one["version"] for one in facts["answers"]}
            if says:
                _note(tx, says)
        return Permits(granted, refused)

    def render(self, delivery: Delivery, leave: Permit) -> Message:
        """The message; the subject is its text's first line."""
        name = delivery.data["template"]
        kind = "login" if name in ("welcome", "reset") else "task"
        settings = leave.data["company"]
        zone = hours(settings).zone
        now = self.context.clock.now()

        def when(at: datetime) -> str:
            return near(at.astimezone(zone), now.astimezone(zone))

        def by(at: datetime) -> str:
            words = when(at)
            return words if words.startswith("in ") else f"by {words}"

        values = {
            **leave.data,
            "name": name,
            "when": when,
            "by": by,
            "url": self.context.settings.public_url,
        }
        subject, _, text = self._words.get_template(f"{kind}.txt").render(values).partition("\n")
        return Message(
            delivery_id=delivery.id,
            channel="email",
            to=leave.address,
            to_name=leave.name,
            subject=" ".join(subject.split()),
            text=text.strip() + "\n",
            html=self._words.get_template(f"{kind}.html").render(values | {"subject": subject}),
            # Colleagues' filters and vacation notes: this is written by a machine.
            headers={"Auto-Submitted": "auto-generated"},
            sender_name=settings["sender_name"] or "Hearback",
            sender_email=settings["sender_email"] or "hearback@localhost",
            reply_to=settings["reply_to"] or settings["sender_email"] or "hearback@localhost",
        )

    def _facts(
        self, tx: Tx, delivery: Delivery, who: Row, told: set[tuple[str, str]]
    ) -> tuple[str | None, dict[str, Any]]:
        data = delivery.data
        name = data["template"]
        if name in ("welcome", "reset"):
            password = passwords.one_time_of(self.context.settings.key("one-time-password"), data["nonce"])
            if not who["must_change_password"] or not passwords.matches(who["password_hash"], password):
                return "overtaken", {}
            return None, {"password": password}
        try:
            task = tasks.card(tx, _ANYBODY, delivery.ref_id)
        except NotFound:
            return "gone", {}
        if task["state"] != "open" or (name in _OWNERS and task["owner_id"] != who["id"]):
            return "overtaken", {}
        if name in ("reminder", "escalated") and task["call_by"] is None:
            return "overtaken", {}
        if name == "revised" and ((task["id"], who["id"]) in told or _has_read(tx, delivery, who["id"])):
            return "told already", {}
        if name in _NEWS:
            told.add((task["id"], who["id"]))
        message = None
        if name == "message":
            message = tx.value("SELECT text FROM inbound_message WHERE id = %s", (data["message_id"],))
            if message is None:
                return "gone", {}
        why = None
        if name == "assigned":
            # Read now, not queued: a reason may name the customer, and is erased with them.
            why = tx.value(
                """SELECT text FROM task_entry WHERE task_id = %s AND kind = 'assigned'
                   ORDER BY at DESC, id DESC LIMIT 1""",
                (task["id"],),
            )
        return None, {
            "why": why,
            "task": task,
            "answers": [a for a in tasks.answers(tx, task["id"]) if a["state"] == "counted"],
            "message": message,
            "data": data,
        }


def _not_to(who: Row | None) -> str | None:
    if who is None or who["disabled"]:
        return "no login"
    return None if "@" in who["email"] else "no address yet"


def _has_read(tx: Tx, delivery: Delivery, staff_id: str) -> bool:
    """Whether a mail that has begun to leave says this version of the answer, or a later one."""
    return bool(
        tx.value(
            """SELECT 1 FROM delivery WHERE ref_id = %s AND kind = 'staff' AND data->>'staff_id' = %s
                  AND handed_at IS NOT NULL AND (data->'says'->>%s)::bigint >= %s LIMIT 1""",
            (delivery.ref_id, staff_id, delivery.data["response_id"], delivery.data.get("version")),
        )
    )


def _note(tx: Tx, says: Mapping[str, Mapping[str, int]]) -> None:
    """Notes with each mail which versions of the answers it tells, whatever the clock says when it leaves."""
    ledger.lock(tx, list(says))
    tx.values(
        "UPDATE delivery d SET data = d.data || v.data::jsonb FROM (VALUES %s) AS v (id, data)"
        " WHERE d.id = v.id::uuid AND d.state = 'claimed'",
        [(id, Json({"says": versions})) for id, versions in says.items()],
    )
