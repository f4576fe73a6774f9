"""Errors in one place: problem JSON (RFC 9457) for programs, a readable page in the frame for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import psycopg2
import structlog
from flask import Flask, Response, g, make_response, redirect, render_template, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from shared.db import is_transient
from shared.errors import HearbackError, Invalid, Unavailable
from shared.web import access

log = structlog.get_logger("hearback.web")

# Slug, title and sentence for what Flask and Werkzeug raise themselves.
_HTTP = {
    400: (
        "bad-request",
        "The request cannot be read",
        "Something in the request is damaged. Nothing was changed.",
    ),
    403: ("forbidden", "This is not for you", "Your role may not use this page."),
    404: (
        "not-found",
        "There is nothing here",
        "The page does not exist, was deleted, or belongs to somebody else. Check the address.",
    ),
    405: (
        "method-not-allowed",
        "This cannot be done here",
        "This address does not accept that kind of request.",
    ),
    406: ("not-acceptable", "We cannot answer in that form", "Ask for JSON or HTML."),
    408: (
        "timeout",
        "That took too long",
        "The request did not arrive in time. Nothing was changed; please try again.",
    ),
    411: ("length-required", "The length is missing", "Say how long the request is (Content-Length)."),
    413: (
        "too-large",
        "That is too large",
        "What was sent is larger than this page accepts. Nothing was changed.",
    ),
    414: ("address-too-long", "The address is too long", "Shorten the address."),
    415: (
        "unsupported-media-type",
        "We cannot read that form of data",
        "Send JSON, or what the API's page asks for.",
    ),
    422: (
        "invalid",
        "Something needs another look",
        "What was sent cannot be accepted. Nothing was changed.",
    ),
    429: ("too-many-requests", "Too many requests", "Wait a little, then try again."),
    500: ("internal", "Something broke on our side", "Nothing you did. It was noted; please try again."),
}
_TITLES = {
    401: "Please log in",
    403: "This is not for you",
    404: "There is nothing here",
    409: "That no longer fits",
    410: "This link has expired",
    422: "Something needs another look",
    429: "Too many requests",
    503: "Back in a moment",
}


def register(app: Flask) -> None:
    """Makes every error of `app` leave through here."""
    app.register_error_handler(HearbackError, of)
    app.register_error_handler(ValidationError, _validation)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(psycopg2.Error, _database)
    app.register_error_handler(Exception, _unexpected)


def wants_json() -> bool:
    """Whether a program asks: by the kind of address, else by what it accepts."""
    path = request.path
    if "/api/" in path or "/internal/" in path or path.startswith(("/v1/", "/webhooks/")):
        return True
    if request.headers.get("Sec-Fetch-Mode") == "navigate":
        return False
    best = request.accept_mimetypes.best_match(["text/html", "application/json", "application/problem+json"])
    return best is not None and best != "text/html"


def json_problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    *,
    fields: Mapping[str, str] | None = None,
    retry_after: int | None = None,
) -> Response:
    """One problem as `application/problem+json`; `errors` names each field and what is wrong with it."""
    body: dict[str, Any] = {
        "type": f"urn:hearback:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "slug": slug,
        "request_id": g.get("request_id", ""),
    }
    if fields:
        body["errors"] = [{"field": name, "detail": text} for name, text in fields.items()]
    response = Response(json.dumps(body, ensure_ascii=False), status, content_type="application/problem+json")
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="hearback"'
    return response


def problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    *,
    fields: Mapping[str, str] | None = None,
    retry_after: int | None = None,
) -> Response:
    """A problem in the form the asker can use."""
    if wants_json():
        return json_problem(status, slug, title, detail, fields=fields, retry_after=retry_after)
    template = "hearback/moment.html" if slug == "one-moment" else "hearback/error.html"
    page = render_template(
        template, status=status, title=title, detail=detail, fields=fields or {}, slug=slug
    )
    response = make_response(page, status)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def of(error: HearbackError) -> Any:
    """What an error of ours becomes: a page, JSON, or the way to where it is mended."""
    if isinstance(error, access.LogIn) and not wants_json():
        return access.login_redirect()
    if isinstance(error, access.MustChangePassword) and not wants_json():
        return redirect("/followup/password", 303)
    if error.status >= 500 and not isinstance(error, Unavailable):
        log.error("request.failed", slug=error.slug, exc_info=error)
    return problem(
        error.status,
        error.slug,
        _TITLES.get(error.status, "Something broke on our side"),
        error.message,
        fields=error.fields,
        retry_after=error.retry_after,
    )


def flatten(messages: Any, prefix: str = "") -> dict[str, str]:
    """marshmallow's nested messages as `{"field.inner": "sentence"}`."""
    if isinstance(messages, Mapping):
        found: dict[str, str] = {}
        for name, inner in messages.items():
            # webargs puts the place ("json", "query", "form") on top; the asker knows where they put it.
            place = not prefix and name in (
                "json",
                "query",
                "form",
                "headers",
                "files",
                "path",
                "json_or_form",
            )
            path = "" if place or name == "_schema" else str(name)
            found.update(flatten(inner, ".".join(part for part in (prefix, path) if part)))
        return found
    texts = messages if isinstance(messages, list) else [messages]
    return {prefix or "request": " ".join(str(text) for text in texts)}


def _validation(error: ValidationError) -> Any:
    return of(Invalid(_HTTP[422][2], fields=flatten(error.messages)))


def _http(error: HTTPException) -> Any:
    status = error.code or 500
    if error.response is not None or status < 400:
        return error.get_response()
    data = getattr(error, "data", None) or {}
    messages = data.get("errors") or data.get("messages")
    slug, title, sentence = _HTTP.get(status, (f"http-{status}", error.name, error.description or error.name))
    response = problem(
        status,
        slug,
        title,
        str(data.get("message") or sentence),
        fields=flatten(messages) if messages else None,
    )
    for name, value in error.get_headers():
        if name.lower() in ("allow", "retry-after", "www-authenticate", "etag"):
            response.headers[name] = value
    return response


def _database(error: psycopg2.Error) -> Any:
    if is_transient(error):
        return of(
            Unavailable("The database does not answer. Nothing was changed; please try again.", retry_after=2)
        )
    return _unexpected(error)


def _unexpected(error: Exception) -> Any:
    # A database error's text may quote what people typed: its kind and code are enough to find it.
    if isinstance(error, psycopg2.Error):
        log.error("request.failed", error=type(error).__name__, code=error.pgcode)
    else:
        log.error("request.failed", exc_info=error)
    slug, title, sentence = _HTTP[500]
    return problem(500, slug, title, sentence)
