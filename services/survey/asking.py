"""The pages and APIs of asking and answering, for the app to register."""

from __future__ import annotations

from services.survey import webhooks
from services.survey.api import permits
from services.survey.api import programs as programs_api
from services.survey.api import responses as responses_api
from services.survey.pages import answer, asks, preferences, programs, responses, uncertain

PAGES = (
    answer.bp,
    preferences.bp,
    programs.bp,
    asks.bp,
    responses.bp,
    uncertain.bp,
    webhooks.bp,
    permits.bp,
)
APIS = (programs_api.bp, responses_api.bp)
