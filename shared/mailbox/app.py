"""Wires the mailbox: a provider's stand-in with its own tables, API, pages and webhooks."""

from __future__ import annotations

from flask import Flask

from shared.clock import Clock
from shared.ids import Ids
from shared.mailbox import api, pages
from shared.mailbox.poster import Poster
from shared.settings import Settings
from shared.web import create_service, finish


def create_app(
    settings: Settings, *, clock: Clock | None = None, ids: Ids | None = None, webhooks: bool = True
) -> Flask:
    """The mailbox as a WSGI application, all of it below /mailbox.

    With `webhooks` false nothing is posted by itself (call `app.extensions["mailbox_poster"].step()`).
    """
    app = create_service(
        "mailbox", settings, clock=clock, ids=ids, package="shared.mailbox", database="log", stand_in=True
    )
    here = app.extensions["hearback"]
    app.extensions["mailbox_poster"] = (
        Poster(settings, here.db) if webhooks else SilentPoster(settings, here.db)
    )
    app.register_blueprint(api.bp)
    app.register_blueprint(pages.bp)
    # What an earlier process left unposted goes out as soon as this one serves anybody.
    app.before_request(app.extensions["mailbox_poster"].wake_once)
    return finish(app)


class SilentPoster(Poster):
    """Posts only when told to, step by step."""

    def wake(self) -> None:
        return None
