"""The rules of a change: what one must say, what may become of it, and whom it can reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

LANGUAGES = {"en": "English", "de": "Deutsch", "es": "Español"}
TITLE_LENGTH = 80
TEXT_LENGTH = 1000
QUOTE_LENGTH = 280
THEME_LENGTH = 60

State = Literal["draft", "published", "withdrawn"]

# Why a customer gets no notice: the words a person reads.
REASONS = {
    "opted_out": "asked for no messages",
    "no_address": "no e-mail address and no phone number",
    "bounced": "the address does not work",
    "contact_limit": "already had as many messages as we allow in 30 days",
    "unknown_customer": "not known here yet",
    "not_known": "not known here yet",
    "erased": "the customer's data was deleted",
    "excluded": "the answer was excluded",
    "withdrawn": "the change was withdrawn first",
    "failed": "the provider refused the message",
    "no_invitation": "the answer is no longer there",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """What a person writes of a change."""

    title: str = ""
    was_wrong: str = ""
    is_different: str = ""
    language: str = "en"
    since: date | None = None
    theme_ids: tuple[str, ...] = ()

    def tidy(self) -> Draft:
        """The same without spaces around, and with each theme once."""
        return Draft(
            " ".join(self.title.split()),
            self.was_wrong.strip(),
            self.is_different.strip(),
            self.language,
            self.since,
            tuple(dict.fromkeys(self.theme_ids)),
        )


def mistakes(draft: Draft, today: date) -> dict[str, str]:
    """What keeps a draft from being saved, by field; `today` is the company's."""
    wrong: dict[str, str] = {}
    if not draft.title:
        wrong["title"] = "Give the change a name: customers read it as the subject of their message."
    elif len(draft.title) > TITLE_LENGTH:
        wrong["title"] = f"Keep the name to {TITLE_LENGTH} characters; this one has {len(draft.title)}."
    for field, what in (("was_wrong", "what was wrong"), ("is_different", "what is different now")):
        text = getattr(draft, field)
        if not text:
            wrong[field] = f"Say {what}, in a sentence or two that a customer understands."
        elif len(text) > TEXT_LENGTH:
            wrong[field] = f"Keep it to {TEXT_LENGTH} characters; this text has {len(text)}."
    if draft.language not in LANGUAGES:
        wrong["language"] = f"Choose one of {', '.join(LANGUAGES)}."
    if not draft.theme_ids:
        wrong["theme_ids"] = "Choose at least one theme: it finds the customers whose words led to this."
    if draft.since and draft.since > today:
        wrong["since"] = "Choose a day that has been: answers count since then."
    return wrong


def reason_text(reason: str | None) -> str:
    """A reason for people; one we do not know is shown as it came, readable."""
    return REASONS.get(reason or "", (reason or "unknown reason").replace("_", " "))


def unreachable(customer: Mapping[str, Any] | None) -> str | None:
    """Why, as far as followup knows, no message would reach a customer; None when one may.

    `customer` is the data of `customer.changed`; None or empty for one we have not heard of yet. Only
    survey's permit decides, at the moment of sending: this is for the preview.
    """
    if not customer:
        return "not_known"
    if customer.get("may_email") or customer.get("may_sms"):
        return None
    if not customer.get("email") and not customer.get("phone"):
        return "no_address"
    if customer.get("email_opt_out_at") or customer.get("sms_opt_out_at"):
        return "opted_out"
    return "bounced"
