"""What survey's pages and APIs share: the fingerprints of the present settings."""

from __future__ import annotations

from services.survey.addresses import Fingerprints, fingerprints
from shared.settings import Settings
from shared.web import service


def opt_out_fingerprints(settings: Settings | None = None) -> Fingerprints:
    """How addresses are remembered that opted out; by default with the current app's settings."""
    return fingerprints((settings or service().settings).keys("opt-out"))
