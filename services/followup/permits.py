"""Asks survey, which alone says who may be contacted, for leave to send, and tells it how that ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from shared.clock import Clock
from shared.errors import Unavailable
from shared.settings import Settings
from shared.web import service_auth

# A permit that took longer to come would leave no time to use it: 15 s of life, 11 s to begin with.
TIMEOUT_SECONDS = 4.0


class SurveyPermits:
    """Survey's permits over a pool of kept connections. Raises `Unavailable` when there is no good answer."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock

    def take(self, requests: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """(the permits granted by delivery id, the reasons for those refused)."""
        answer = self._post("/survey/internal/permits", {"requests": list(requests)})
        try:
            granted = {one["id"]: dict(one) for one in answer["granted"]}
            refused = {one["id"]: str(one["reason"]) for one in answer["refused"]}
        except (KeyError, TypeError) as error:
            raise Unavailable("Survey's answer about permits cannot be read.") from error
        return granted, refused

    def settle(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Tells how hand-overs ended."""
        self._post("/survey/internal/permits/settle", {"results": list(results)})

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = _pool(os.getpid()).request(
                "POST",
                f"{self.settings.survey_url}{path}",
                body=json.dumps(body).encode(),
                headers={
                    "Content-Type": "application/json",
                    **service_auth.header(self.settings, "permits", self.clock),
                },
                timeout=urllib3.Timeout(total=TIMEOUT_SECONDS),
                retries=False,
                redirect=False,
            )
        except HTTPError as error:
            raise Unavailable("Survey does not answer; messages wait.") from error
        if answer.status not in (200, 204):
            raise Unavailable(f"Survey answered {answer.status}; messages wait.")
        if not answer.data:
            return {}
        try:
            return answer.json()
        except ValueError as error:
            raise Unavailable("Survey's answer cannot be read; messages wait.") from error


@lru_cache(maxsize=1)
def _pool(process: int) -> urllib3.PoolManager:
    # By process: connections made before a fork must not be used by two.
    return urllib3.PoolManager(num_pools=2, maxsize=4)
