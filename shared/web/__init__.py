"""What every service's pages and APIs are made of; the names here are all that services need."""

from __future__ import annotations

from shared.web.access import (
    Actor,
    actor,
    actor_or_none,
    allow,
    is_local,
    operator_or_key,
    public,
    service_call,
)
from shared.web.csrf import csrf_field
from shared.web.factory import UndeclaredRoute, create_service, finish
from shared.web.flashes import flash
from shared.web.headers import csp_allow, csp_nonce, csp_replace
from shared.web.idempotency import idempotent
from shared.web.limits import body_limit, rate_limit
from shared.web.paging import Cursor, PageArgs, page_args
from shared.web.problems import json_problem, wants_json
from shared.web.service import Service, WebDatabase, service
from shared.web.session import safe_next

__all__ = [
    "Actor",
    "Cursor",
    "PageArgs",
    "Service",
    "UndeclaredRoute",
    "WebDatabase",
    "actor",
    "actor_or_none",
    "allow",
    "body_limit",
    "create_service",
    "csp_allow",
    "csp_nonce",
    "csp_replace",
    "csrf_field",
    "finish",
    "flash",
    "idempotent",
    "is_local",
    "json_problem",
    "operator_or_key",
    "page_args",
    "public",
    "rate_limit",
    "safe_next",
    "service",
    "service_call",
    "wants_json",
]
