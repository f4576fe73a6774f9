"""Headers that tell browsers what a page may do: nothing that it does not need."""

from __future__ import annotations

import secrets

from flask import Response, g, request

from shared.web.service import service
from shared.web.session import is_secure

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}


def csp_nonce() -> str:
    """The nonce for this page's own inline `<style nonce=…>` and `<script nonce=…>`."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    return str(g.csp_nonce)


def csp_allow(directive: str, source: str) -> None:
    """Lets this one page also use `source` (`csp_allow("frame-src", "'self'")`)."""
    g.setdefault("csp_extra", {}).setdefault(directive, []).append(source)


def csp_replace(policy: str) -> None:
    """Gives this one reply a policy of its own (a mail shown in a frame)."""
    g.csp_policy = policy


def add_headers(response: Response) -> Response:
    """After each request: the headers, unless the view has set its own."""
    wanted = {**_ALWAYS, "X-Request-Id": g.get("request_id", "")}
    if is_secure(service()):
        wanted["Strict-Transport-Security"] = "max-age=31536000"
    if response.mimetype == "text/html":
        wanted["Content-Security-Policy"] = g.get("csp_policy") or _policy()
    if request.path.startswith(("/a/", "/u/")):
        wanted["X-Robots-Tag"] = "noindex, nofollow"
    # Looked through once; each `setdefault` would do so by itself.
    there = {name.lower() for name, _ in response.headers}
    for name, value in wanted.items():
        if name.lower() not in there:
            response.headers.add(name, value)
    return response


def _policy() -> str:
    policy = dict(_POLICY)
    if "csp_nonce" in g:
        for directive in ("script-src", "style-src"):
            policy[directive] += f" 'nonce-{g.csp_nonce}'"
    for directive, sources in g.get("csp_extra", {}).items():
        policy[directive] = " ".join([*filter(None, [policy.get(directive)]), *sources])
    return "; ".join(f"{name} {value}" for name, value in policy.items())
