"""The bar on top: what the role may use, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from flask import g, request

from shared.web.access import Actor
from shared.web.service import service

_WORK = ("agent", "lead", "admin")
_LEAD = ("lead", "admin")


@dataclass(frozen=True, slots=True)
class Link:
    """One entry; `under` are the paths on which it is marked as the present place."""

    text: str
    href: str
    icon: str
    roles: tuple[str, ...]
    under: tuple[str, ...] = ()

    @property
    def current(self) -> bool:
        """Whether the page shown belongs to this entry."""
        return request.path.startswith(self.under or (self.href,))


BAR = (
    Link("Inbox", "/followup/inbox", "inbox", _WORK, ("/followup/inbox", "/followup/tasks")),
    Link(
        "Customers",
        "/survey/customers",
        "people",
        _WORK,
        ("/survey/customers", "/survey/imports", "/survey/search"),
    ),
    Link(
        "Programs",
        "/survey/programs",
        "send",
        _LEAD,
        ("/survey/programs", "/survey/asks", "/survey/uncertain"),
    ),
    Link("Changes", "/followup/changes", "megaphone", _LEAD, ("/followup/changes", "/followup/themes")),
    Link("Reports", "/reporting/", "graph-up", ("lead", "admin", "viewer"), ("/reporting/",)),
)
GEAR = (
    Link("Settings", "/survey/settings", "sliders", ("admin",)),
    Link("Staff", "/followup/staff", "person-gear", ("admin",)),
    Link("Keys", "/followup/keys", "key", ("admin",)),
    Link("Status", "/reporting/status", "activity", _LEAD),
    Link("Mailbox", "/mailbox", "envelope", _LEAD),
    Link("Password", "/followup/password", "shield-lock", ("agent", "lead", "admin", "viewer")),
)


def bar(who: Actor | None) -> list[Link]:
    """The entries of the bar for `who`."""
    return [link for link in BAR if _may(who, link)]


def gear(who: Actor | None) -> list[Link]:
    """The entries behind the gear for `who`, log out aside; the mailbox only where it is in use."""
    hidden = () if service().settings.uses_mailbox else ("/mailbox",)
    return [link for link in GEAR if _may(who, link) and link.href not in hidden]


def may_search(who: Actor | None) -> bool:
    """Whether the search field is shown."""
    return bool(who and who.role in _WORK) and not _is_new()


def _may(who: Actor | None, link: Link) -> bool:
    return bool(who and who.role in link.roles) and not _is_new()


def _is_new() -> bool:
    """Whether a given password is still to be replaced: until then nothing else opens."""
    return "session" in g and g.session.must_change
