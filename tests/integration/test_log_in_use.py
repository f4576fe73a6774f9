"""Which log events are on: a service whose database was lost and made anew finds the others."""

from __future__ import annotations

from shared.log import in_use, move
from shared.log.in_use import InUse
from shared.settings import SERVICES, Settings


def _begun(settings: Settings, logs: dict[str, str]) -> dict[str, InUse | None]:
    """What each service says once everything starts, when those in `logs` were on theirs before."""
    databases = {service: in_use.service_database(settings, service) for service in SERVICES}
    try:
        for service, log in logs.items():
            in_use.begin(databases[service], log)
        move.start_with(settings, lambda said: None)
        found = {}
        for service, db in databases.items():
            with db.transaction() as tx:
                found[service] = in_use.read(tx)
        return found
    finally:
        for db in databases.values():
            db.close()


def test_who_lost_a_database_starts_on_the_log_of_the_others(settings: Settings) -> None:
    here = _begun(settings, {"survey": "kafka", "followup": "kafka"})
    assert here == dict.fromkeys(SERVICES, InUse("kafka"))


def test_the_first_start_of_all_is_on_the_embedded_log(settings: Settings) -> None:
    assert _begun(settings, {}) == dict.fromkeys(SERVICES, InUse("embedded"))
