"""What the pages of customers share: they stand alone, are small, kind in every error, and need no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from services.survey.words import LANGUAGES, language_of, words
from shared.errors import HearbackError, NotFound, TooMany, Unavailable
from shared.web import csp_nonce, problems, rate_limit

# Whoever tries links has a minute to think after so many that lead nowhere.
_UNKNOWN, _SECONDS = 30, 60


def page(template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    """One of the customers' pages, with its own inline style and script."""
    return make_response(render_template(template, csp=csp_nonce(), **values), status)


def friendly(view: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the errors of a customer's page readable, in their browser's language; counts unknown links."""

    @wraps(view)
    def shown(*args: Any, **kwargs: Any) -> Any:
        try:
            try:
                return view(*args, **kwargs)
            except NotFound:
                rate_limit(f"unknown-link:{request.remote_addr}", _UNKNOWN, _SECONDS)
                raise
        except HearbackError as error:
            if not wants_page() or isinstance(error, Unavailable):
                raise
            return _error(error)

    return shown


def patient(bp: Blueprint) -> None:
    """On these pages who comes while we cannot serve gets their own words back, and a button to send them
    again: with the same nonce, so that it is one answer even when the first one did arrive.
    """

    @bp.errorhandler(Unavailable)
    def again(error: Unavailable) -> Any:
        if not wants_page():
            return problems.of(error)
        language = language_of(request.accept_languages.best_match(LANGUAGES))
        # Without the form (nobody could wait for it) the page is shown again; their browser has the words.
        method = "post" if request.method == "POST" and request.form else "get"
        sent = (request.form if method == "post" else request.args).to_dict()
        response = page(
            "customer/again.html",
            _PLAIN
            | {
                "language": language,
                "text": words(language)["answer"],
                "method": method,
                "words": sent.pop("comment", None),
                "sent": sent,
            },
            error.status,
        )
        response.headers["Retry-After"] = str(error.retry_after or 2)
        return response


_PLAIN = {"colour": "#1f5fbf", "on_colour": "#ffffff"}


def _error(error: HearbackError) -> Response:
    kind = "unknown" if isinstance(error, NotFound) else "many" if isinstance(error, TooMany) else "broken"
    language = language_of(request.accept_languages.best_match(LANGUAGES))
    said = words(language)["answer"]
    response = page(
        "customer/message.html",
        _PLAIN | {"language": language, "title": said[f"{kind}_title"], "text": said[kind]},
        error.status,
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def wants_page() -> bool:
    """Whether a browser navigates, rather than our script fetching."""
    if request.environ.get("HTTP_ACCEPT") == "application/json":  # our script; no list to weigh
        return False
    best = request.accept_mimetypes.best_match(["text/html", "application/json"])
    return best == "text/html"


def notice_of(text: str | None) -> str:
    """The note a redirect asked to show; anything else shows none."""
    return text if text in ("saved", "stop", "stop_all", "start", "on_its_way") else ""
