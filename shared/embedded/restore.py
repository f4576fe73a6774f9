"""Restoring a backup: the whole installation, or the database of one service while the others run on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg2.extensions
from psycopg2 import sql

from shared.channels import ledger
from shared.db import Row, Tx
from shared.embedded import backup, processes
from shared.embedded import home as folder
from shared.embedded.backup import Backup, opened, started
from shared.embedded.installation import Progress, make_lost, setting
from shared.embedded.owner import CannotRunHere, find_owner
from shared.embedded.postgres import Postgres
from shared.embedded.supervisor import POSTGRES, PROGRAMS, Supervisor
from shared.logins import create_database
from shared.migrate import has_ledger, migrate
from shared.settings import DATABASES, SECRET_FILE, SERVICES, Settings, load


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored. `aside`: where the data that was there is now; `uncertain`: how many messages were
    due at the backup's point; `gap`: whether the log no longer has all that the service has to hear again."""

    backup: Backup
    aside: Path | None = None
    uncertain: int = 0
    gap: bool = False


def everything(home: Path, source: Path, progress: Progress, *, replace: bool) -> Restored:
    """Makes the data folder what it was when the backup in `source` was made; nothing may run in it.

    Data that is there is moved aside, if `replace` says so, else refused. Raises a `HearbackError` that
    says what is wrong; then nothing was changed.
    """
    if any(setting(f"{name.upper()}_DATABASE_URL") for name in DATABASES):
        raise CannotRunHere(
            "HEARBACK_…_DATABASE_URL is set, and a backup holds an installation with its own databases: "
            "unset it, or restore with that server's programs; see docs/operations.md."
        )
    held = backup.read(source, progress)
    secret = (source / SECRET_FILE).read_text().strip()
    if setting("SECRET") and load(first_start=True).secret != secret:
        raise CannotRunHere(
            "HEARBACK_SECRET is another secret than the backup's, and no link that was sent would work any "
            f"more. Unset it, or set it to what {source / SECRET_FILE} says."
        )
    (home / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    with folder.locked(home, lambda: progress.note("Another `hearback` is at work here; waiting for it.")):
        _check_stopped(home)
        folder.finish_restores(home)
        there = [name for name in folder.STATE if (home / name).exists()]
        if there and not replace:
            raise CannotRunHere(
                f"{home} holds an installation already ({', '.join(there)}). With --replace it is moved "
                "aside, and nothing of it is deleted."
            )
        with _copied(home, source, held, progress) as copy:
            with progress.step("Looking which messages may have been sent since"), started(copy):
                uncertain = sum(_hold(copy, service) for service in SERVICES if has_ledger(service))
            with progress.step("Putting it in its place"):
                os.sync()  # all of the copy is on the disk before what was there is given up
                aside = folder.put_in(home, copy.home.parent, f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
    return Restored(held, aside, uncertain)


def one_service(settings: Settings, source: Path, service: str, progress: Progress) -> Restored:
    """Puts the database of one service back to the backup's point, while everything else runs on.

    It then hears again what came on the log since, and acts on it. Whoever keeps a replica of what it owns
    has to be rebuilt afterwards. Its present database is dropped. Raises a `HearbackError` that says what
    is wrong; before its database is exchanged nothing was changed.
    """
    home = settings.home
    owner = find_owner(home)
    running, manager = Postgres(home, owner), Supervisor(home)
    folder.check_secret(settings)
    backup.check_own(running, settings)
    held = backup.read(source, progress)
    if (source / SECRET_FILE).read_text().strip() not in (settings.secret, settings.previous_secret):
        raise CannotRunHere(
            f"{source} is the backup of another installation, or from before its secret was changed: then "
            "set HEARBACK_PREVIOUS_SECRET to the one in there, and start again with it."
        )
    with folder.locked(home, lambda: progress.note("Another `hearback` is at work here; waiting for it.")):
        lost = make_lost(running, settings, progress, service)
        backup.check_log(settings, [name for name in SERVICES if name != service or name not in lost])
        with _copied(home, source, held, progress, times=3) as copy:
            dump = copy.home / "dump"
            with progress.step(f"Reading {service} out of the backup"), started(copy):
                uncertain = _hold(copy, service) if has_ledger(service) else 0
                with opened(copy, "log") as db, db.transaction() as tx:
                    places = tx.all(
                        'SELECT topic, "partition", "offset" FROM log_offset WHERE consumer = %s', (service,)
                    )
                copy.tool("pg_dump", "--format=custom", f"--file={dump}", service)
            new = f"{service}_restored"
            with progress.step(f"Making the database of {service} again"):
                running.drop_database(new)
                try:
                    with _superuser(running) as cur:
                        create_database(cur, new, service)
                    running.tool("pg_restore", "--exit-on-error", f"--dbname={new}", str(dump))
                    migrate(service, running.url(service, new), alone=True)
                except BaseException:
                    running.drop_database(new)
                    raise
            worker = f"{service}-worker"
            with progress.step("Putting it in its place"):
                manager.stop_program(worker)
                try:
                    gap = _exchange(running, service, new, places)
                finally:
                    # The others as well: `up` starts none of them while a database is lost.
                    for name in PROGRAMS:
                        if name != POSTGRES:
                            manager.start_program(name)
    return Restored(held, None, uncertain, gap)


def _check_stopped(home: Path) -> None:
    data = Postgres(home, find_owner(home)).data
    if Supervisor(home).alive() or processes.noted(home) or processes.backends(data):
        raise CannotRunHere(f"Hearback runs in {home}: stop it first with `hearback down`.")


@contextmanager
def _copied(
    home: Path, source: Path, held: Backup, progress: Progress, *, times: int = 1
) -> Iterator[Postgres]:
    """A copy of the backup within the data folder, as a server that can be started; removed at the end.

    Only what the backup knows of is copied, as nobody's but the owner's to read. There has to be room for so
    many `times` its size: a dump of it, and a database filled from that, may follow.
    """
    restoring = home / folder.RESTORING
    shutil.rmtree(restoring, ignore_errors=True)
    size = times * sum((source / name).stat().st_size for name in held.files)
    free = shutil.disk_usage(home).free
    if free < size + backup.SPARE:
        raise CannotRunHere(
            f"There is no room to restore: it takes {(size + backup.SPARE) // 2**20} MB, and {home} has "
            f"{free // 2**20} MB free."
        )
    new = restoring / folder.NEW
    new.mkdir(mode=0o700, parents=True)
    owner = find_owner(home)
    try:
        with progress.step("Copying the backup"):
            for name in held.folders or _folders(source):
                (new / name).mkdir(parents=True, exist_ok=True)
            for name in held.files:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, new / name)
            for path in new.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
            owner.own(restoring, deep=True)
        yield Postgres(new, owner)
    finally:
        shutil.rmtree(restoring, ignore_errors=True)


def _folders(source: Path) -> list[str]:
    return [str(one.relative_to(source)) for one in source.rglob("*") if one.is_dir()]


def _hold(copy: Postgres, service: str) -> int:
    with opened(copy, service) as db, db.transaction() as tx:
        return ledger.restored(tx)


def _exchange(running: Postgres, service: str, new: str, places: Sequence[Row]) -> bool:
    """Makes the database `new` that of `service`, and has it read on from `places`, where it was then.

    Returns whether events that it has not heard are gone from the log. The service's consumer is stopped.
    """
    old = f"{service}_replaced"
    # First the places: to hear again what was applied changes nothing, to miss an event would.
    with opened(running, "log") as db, db.transaction() as tx:
        gap = _read_from(tx, service, places)
    present, restored, replaced = (sql.Identifier(name) for name in (service, new, old))
    with _superuser(running) as cur:
        cur.execute("SELECT 1 FROM pg_database WHERE datname = %s", (service,))
        if cur.fetchone() is None:
            cur.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(restored, present))
            return gap
        # The web asks again at once: nobody may enter until the names have changed.
        cur.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(present))
        try:
            cur.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = ANY(%s)",
                ([service, new],),
            )
            cur.execute(
                sql.SQL(
                    "BEGIN; ALTER DATABASE {0} RENAME TO {1}; ALTER DATABASE {2} RENAME TO {0}; COMMIT"
                ).format(present, replaced, restored)
            )
        finally:
            cur.execute(sql.SQL("ROLLBACK; ALTER DATABASE {} ALLOW_CONNECTIONS true").format(present))
    running.drop_database(old)
    return gap


def _read_from(tx: Tx, service: str, places: Sequence[Row]) -> bool:
    gap = False
    for place in places:
        gap |= bool(
            tx.value(
                """SELECT NOT t.compacted AND o."offset" > %(offset)s AND NOT EXISTS (
                    SELECT FROM log_record r WHERE r.topic = o.topic AND r."partition" = o."partition"
                    AND r."offset" = %(offset)s)
                FROM log_offset o JOIN log_topic t ON t.name = o.topic
                WHERE o.consumer = %(service)s AND o.topic = %(topic)s AND o."partition" = %(partition)s""",
                {**place, "service": service},
            )
        )
        tx.execute(
            """UPDATE log_offset SET "offset" = least("offset", %(offset)s)
            WHERE consumer = %(service)s AND topic = %(topic)s AND "partition" = %(partition)s""",
            {**place, "service": service},
        )
    return gap


@contextmanager
def _superuser(running: Postgres) -> Iterator[psycopg2.extensions.cursor]:
    connection = running.connect()
    try:
        with connection.cursor() as cur:
            yield cur
    finally:
        connection.close()
