"""What providers post to us: signed, checked over the raw body, each event with one effect."""

from __future__ import annotations

from flask import Blueprint

from services.survey.webhooks import mailbox, sendgrid, twilio

bp = Blueprint("webhooks", __name__)
# Everybody's routes are there; those of a provider that is not chosen answer as if they were not.
for provider in (mailbox, sendgrid, twilio):
    provider.register(bp)
