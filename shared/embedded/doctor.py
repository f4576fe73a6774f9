"""Looks at each part of an installation and says what is wrong with it, and what to do, in one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.channels import credentials
from shared.embedded import home as folder
from shared.embedded import readiness
from shared.embedded.installation import Installation
from shared.embedded.owner import CannotRunHere
from shared.embedded.postgres import binaries
from shared.embedded.readiness import Part
from shared.errors import HearbackError
from shared.log import in_use, open_log
from shared.migrate import head, version
from shared.settings import DATABASES, SERVICES, Settings, load


def examine(installation: Installation) -> Iterator[Part]:
    """Each part, the ones that others stand on first. Never raises; nothing is changed."""
    yield _check("Python", _python)
    yield _check("PostgreSQL's programs", lambda: str(binaries()))
    yield _check("data folder", lambda: _home(installation.home))
    yield readiness.disk(installation.home)
    try:
        settings = load()
    except HearbackError as error:
        yield Part("settings", error.message)
        return
    yield Part("settings", "", {"said": f"mail {settings.mail}, SMS {settings.sms}"})
    yield (keeper := readiness.manager(installation.supervisor))
    # Without it nobody can say whether the others run; whether they answer is seen below.
    for part in readiness.programs(installation.supervisor, installation.names() if keeper.ok else []):
        yield Part(part.name, _hint(part), {"said": f"runs as process {part.facts.get('pid')}"})
    for name in DATABASES:
        yield _check(f"database {name}", lambda name=name: _database(settings, name))  # type: ignore[misc]
    yield _check("log", lambda: _log(settings))
    yield from _parts(settings, installation)


def _log(settings: Settings) -> str:
    """Which log is in use, and that it answers; a move that was not ended is wrong, too."""
    db = in_use.service_database(settings, SERVICES[0])
    try:
        with db.transaction() as tx:
            here = in_use.read(tx)
    finally:
        db.close()
    if here is None:
        raise CannotRunHere("none is in use yet: start everything with `hearback up`")
    if here.moving_to:
        raise CannotRunHere(
            f"a move to {in_use.NAMES[here.moving_to]} was begun and not ended, and events wait: run "
            f"`hearback log move --to {here.moving_to}` again"
        )
    if settings.log is not None and settings.log != here.log:
        raise in_use.WrongLog(in_use.refusal(settings, here.log, settings.log))
    log = open_log(settings, name=here.log)
    try:
        log.ping()
    finally:
        log.close()
    where = f" at {settings.kafka.bootstrap}" if here.log == "kafka" and settings.kafka else ""
    return f"{in_use.NAMES[here.log]}{where} answers"


def _parts(settings: Settings, installation: Installation) -> Iterator[Part]:
    yield from (_said(part, "ready") for part in readiness.web(settings))
    yield from (_said(part, "ready") for part in readiness.workers(settings, installation.supervisor))
    if settings.uses_mailbox:
        yield _said(readiness.mailbox(settings), f"{settings.mailbox_url}/mailbox/")
    for found in credentials.check(settings):
        yield Part(found.name, found.problem, {"said": found.said})
    behind = readiness.replicas(settings, late=readiness.LATE)
    yield from (_said(part, str(part.facts.get("said", "nothing waits"))) for part in behind)


def _said(part: Part, said: str) -> Part:
    return Part(part.name, part.problem, {"said": said})


def _hint(part: Part) -> str:
    return (
        f"{part.problem}: start it with `hearback up`, see `hearback logs {part.name}`"
        if part.problem
        else ""
    )


def _check(name: str, look: Callable[[], str]) -> Part:
    try:
        return Part(name, "", {"said": look()})
    except HearbackError as error:
        return Part(name, error.message)
    except OSError as error:
        return Part(name, f"{error.strerror or error}")


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _home(home: Path) -> str:
    if not home.is_dir():
        raise CannotRunHere(f"{home} is not there yet: run `hearback up`")
    folder.check_format(home)
    for path in (home, home / "run", home / "log"):
        if not os.access(path, os.W_OK, effective_ids=True):
            raise CannotRunHere(
                f"{path} cannot be written: make it yours, or choose another with HEARBACK_HOME"
            )
    return str(home)


def _database(settings: Settings, name: str) -> str:
    found = version(name, settings.database_urls[name])
    if found is None or found < head(name):
        raise CannotRunHere(
            f"its tables are at version {found or 'none'}, {head(name)} is needed: run `hearback migrate`"
        )
    return f"answers, tables at version {found}"
