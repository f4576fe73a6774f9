"""What reporting's worker does: it listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.reporting.handlers import GROUP, TOPICS, apply
from shared.events.workers import consumer_loop
from shared.roles import Loop, RoleContext


def _consumer(context: RoleContext) -> Loop:
    return consumer_loop(context, GROUP, TOPICS, apply)


ROLES: Mapping[str, Callable[[RoleContext], Loop]] = {"consumer": _consumer}
