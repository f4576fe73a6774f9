"""Backups of an embedded installation: one consistent point of all databases, and the secret, read back.

A backup is a folder that is whole or not there: PostgreSQL's base backup, recovered to its point and
stopped, beside the files that lie with it in the data folder, and `backup.json` with a digest of each file.
Where it is kept need not keep modes or empty folders: `restore` makes both again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import psycopg2.extensions

from shared.agreement import Difference, differences
from shared.clock import SystemClock
from shared.db import Database
from shared.embedded.files import write_private
from shared.embedded.home import FORMAT_FILE, STATE, check_format, check_secret
from shared.embedded.installation import Progress
from shared.embedded.owner import CannotRunHere, Owner, check_reach, find_owner
from shared.embedded.postgres import Postgres, major
from shared.errors import HearbackError
from shared.ids import SystemIds
from shared.log import in_use
from shared.migrate import NewerDatabase, head, version
from shared.presence import program_version
from shared.settings import DATABASES, POSTGRES_FILE, SECRET_FILE, SERVICES, Settings

FORMAT = 1
DESCRIPTION = "backup.json"
# Room that is left for what is written while the copy is made, and by its recovery.
SPARE = 200 * 2**20


# Whatever a backup that was broken off has left begins like one of these.
_PARTS = (*STATE, DESCRIPTION)


class NoBackup(HearbackError):
    """The folder holds no backup, or not all of one any more."""

    slug = "no-backup"


@dataclass(frozen=True, slots=True)
class Backup:
    """What `backup.json` says. All that was acknowledged before `began_at` is there, nothing from after
    `ended_at` (RFC 3339). `tables` are the databases' migrations, `files` the SHA-256 of each file, `folders`
    those in which there may be none."""

    format: int
    began_at: str
    ended_at: str
    program: str
    postgres: str
    tables: Mapping[str, str]
    answers: int
    files: Mapping[str, str]
    folders: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError` when something else stands there."""
        texts = (self.began_at, self.ended_at, self.program, self.postgres)
        if not (
            all(isinstance(text, str) for text in (*texts, *self.folders))
            and isinstance(self.tables, dict)
            and set(self.tables) == set(DATABASES)
            and isinstance(self.files, dict)
            and {SECRET_FILE, FORMAT_FILE} <= set(self.files)
            and all(isinstance(text, str) for text in (*self.tables.values(), *self.files.values()))
            and not any(".." in Path(name).parts or Path(name).is_absolute() for name in self.folders)
        ):
            raise ValueError("not what a backup says of itself")


def make(settings: Settings, target: Path, progress: Progress) -> Backup:
    """Backs the running installation up into the new folder `target`, and reads the copy back.

    Raises a `HearbackError` that says what is wrong; then `target` is not there.
    """
    home = settings.home
    check_format(home)
    if target.is_mount():
        raise CannotRunHere(
            f"{target} is a whole disk, and a backup becomes a folder when it is done: choose a new folder"
            f" on it, such as {target / 'hearback'}."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CannotRunHere(f"{target} is there already and is not empty: choose a new folder.")
    if home.resolve() in (target.resolve(), *target.resolve().parents):
        raise CannotRunHere(
            f"{target} lies in the data folder, and would be lost with it: choose another place."
        )
    check_secret(settings)
    owner = find_owner(home)
    running = Postgres(home, owner)
    check_own(running, settings)
    check_log(settings)
    unfinished = target.with_name(f"{target.name}.unfinished")
    with _claimed(unfinished):
        try:
            _own(owner, unfinished)
            check_reach(owner, unfinished)
            made = _copy(settings, running, Postgres(unfinished, owner), progress)
            os.sync()  # what has its name is on the disk, whatever becomes of the machine
            unfinished.replace(target)
            os.sync()
        except OSError as error:
            raise CannotRunHere(f"The backup could not be written: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return made


@contextmanager
def _claimed(unfinished: Path) -> Iterator[None]:
    """A new folder that is nobody else's during the block; what a killed backup left there is removed."""
    taken = CannotRunHere(
        f"{unfinished} is there: another backup is being made, or one was broken off. Then remove it."
    )
    try:
        if unfinished.is_dir():
            with _locked(unfinished) as locked:
                if not locked or not all(path.name.startswith(_PARTS) for path in unfinished.iterdir()):
                    raise taken
                shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700, parents=True)
        with _locked(unfinished):
            yield
    except (FileExistsError, BlockingIOError):
        raise taken from None
    except OSError as error:
        raise CannotRunHere(
            f"{unfinished} cannot be made: {(error.strerror or str(error)).lower()}."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Locks a folder until the block, or the process, ends; False where the file system cannot.

    Raises `BlockingIOError` when somebody else has it.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            yield False
            return
        if not os.path.samestat(os.fstat(folder), path.stat()):
            raise BlockingIOError  # somebody took it for left, a moment ago
        yield True
    finally:
        os.close(folder)


def _own(owner: Owner, folder: Path) -> None:
    try:
        owner.own(folder)
    except OSError as error:
        raise CannotRunHere(
            f"The file system of {folder.parent} does not let files belong to another user, and run as root, "
            "Hearback works as one. Choose a folder on this machine's own disk, and copy it there "
            "afterwards: that loses nothing."
        ) from error


def check_own(running: Postgres, settings: Settings) -> None:
    """Raises `CannotRunHere` unless all databases are in this server, and it runs."""
    running.load()
    if not running.holds(settings.database_urls):
        raise CannotRunHere(
            "Not all databases are this installation's own (HEARBACK_…_DATABASE_URL is set), so they have no "
            "common point: back them up with their server's programs; see docs/operations.md."
        )
    try:
        running.connect().close()
    except psycopg2.OperationalError as error:
        raise CannotRunHere(
            f"PostgreSQL does not run in {running.home}: start everything with `hearback up`; a backup is "
            "taken while it works."
        ) from error


def check_log(settings: Settings, services: Sequence[str] = SERVICES) -> None:
    """Raises `CannotRunHere` unless the log that these services are on is in the databases, too."""
    for service in services:
        db = in_use.service_database(settings, service)
        try:
            with db.transaction() as tx:
                found = in_use.read(tx)
        finally:
            db.close()
        if found is not None and (found.log != "embedded" or found.moving_to):
            raise CannotRunHere(
                "The events are on Kafka, or on their way to or from it, and no common point with it can be "
                "kept. Either move them first (`hearback log move --to embedded`), or back up the databases "
                "as docs/operations.md says for containers."
            )


def _copy(settings: Settings, running: Postgres, copy: Postgres, progress: Progress) -> Backup:
    """Fills the folder of `copy`."""
    size, reached = _size_and_position(running)
    free = shutil.disk_usage(copy.home).free
    if free < size + SPARE:
        raise CannotRunHere(
            f"There is no room for the backup: it takes about {(size + SPARE) // 2**20} MB, and "
            f"{copy.home.parent} has {free // 2**20} MB free."
        )
    began = _now()
    with progress.step("Copying the databases"):
        running.tool(
            "pg_basebackup", "-D", str(copy.data), "--wal-method=stream", "--checkpoint=fast",
            "--manifest-checksums=SHA256",
        )  # fmt: skip
    ended = _now()
    with progress.step("Checking each file"):
        _check_manifest(copy.data)
    for name, text in (
        (POSTGRES_FILE, (running.home / POSTGRES_FILE).read_text()),
        (SECRET_FILE, settings.secret + "\n"),
        (FORMAT_FILE, (running.home / FORMAT_FILE).read_text()),
    ):
        write_private(copy.home / name, text)
        copy.owner.own(copy.home / name)
    with progress.step("Reading every database back"), started(copy):
        _check_position(copy, reached)
        for name in DATABASES:
            copy.tool("pg_dump", "--file=/dev/null", name)
        answers = _recount(copy, progress)
        tables = {name: version(name, copy.url(name)) or "" for name in DATABASES}
    with progress.step("Noting what each file is"):
        made = Backup(
            FORMAT,
            began,
            ended,
            program_version(),
            (copy.data / "PG_VERSION").read_text().strip(),
            tables,
            answers,
            digests(copy.home),
            sorted(str(path.relative_to(copy.home)) for path in copy.home.rglob("*") if path.is_dir()),
        )
        write_private(copy.home / DESCRIPTION, json.dumps(asdict(made), indent=1) + "\n")
        copy.owner.own(copy.home / DESCRIPTION)
    return made


@contextmanager
def started(copy: Postgres) -> Iterator[None]:
    """The server of a copied data folder, on a port of its own, during the block; then stopped cleanly."""
    copy.initialise()
    copy.start(600, die_with_us=True)
    try:
        yield
    finally:
        copy.stop()
        (copy.home / "postgres.log").unlink(missing_ok=True)


def _size_and_position(running: Postgres) -> tuple[int, str]:
    """How many bytes a copy takes, and how far the write-ahead log has come."""
    connection = running.connect()
    try:
        with connection.cursor() as cur:
            cur.execute(
                "SELECT (SELECT sum(pg_database_size(oid)) FROM pg_database)::bigint"
                " + (SELECT sum(size) FROM pg_ls_waldir())::bigint, pg_current_wal_flush_lsn()::text"
            )
            size, position = cur.fetchall()[0]
            return int(size), str(position)
    finally:
        connection.close()


def _check_position(copy: Postgres, reached: str) -> None:
    connection = copy.connect()
    try:
        with connection.cursor() as cur:
            cur.execute("SELECT pg_current_wal_insert_lsn() >= %s::pg_lsn", (reached,))
            if cur.fetchone() != (True,):
                raise NoBackup(
                    "The copy does not hold all that was there when it was begun; nothing was kept."
                )
    finally:
        connection.close()


def _check_manifest(data: Path) -> None:
    """Compares the copy with what PostgreSQL says it sent. Raises `NoBackup`."""
    manifest = data / "backup_manifest"
    for file in json.loads(manifest.read_text())["Files"]:
        path = data / (file["Path"] if "Path" in file else bytes.fromhex(file["Encoded-Path"]).decode())
        if _digest(path) != file["Checksum"]:
            raise NoBackup(f"{path.name} did not arrive as it was sent; nothing was kept.")
    manifest.unlink()


def _recount(copy: Postgres, progress: Progress) -> int:
    """How many answers survey has in the copy; says so when reporting's figures are no recount, or when
    services differ by more than what was under way between them."""
    recount = importlib.import_module("services.reporting.queries.recount").recount
    with ExitStack() as stack:
        databases = {name: stack.enter_context(opened(copy, name)) for name in DATABASES}
        with databases["reporting"].transaction() as tx:
            if not recount(tx).equal:
                progress.note(
                    "Figures differ from a recount, here and in the backup: run `hearback rebuild reporting`."
                )
        for one in differences(databases):
            if len(one) > _under_way(databases, one):
                progress.note(f"Here and in the backup {one}: run `hearback rebuild {one.keeper}`.")
        with databases["survey"].transaction() as tx:
            return int(tx.value("SELECT count(*) FROM response"))


def _under_way(databases: Mapping[str, Database], found: Difference) -> int:
    """How many events of the owner the keeper may still have to hear, at a backup's point."""
    with databases[found.owner].transaction() as tx:
        waiting = int(tx.value("SELECT count(*) FROM outbox"))
    with databases["log"].transaction() as tx:
        return waiting + int(
            tx.value(
                """SELECT coalesce(sum(p.next_offset - o."offset"), 0) FROM log_offset o
                JOIN log_partition p USING (topic, "partition") WHERE o.consumer = %s""",
                (found.keeper,),
            )
        )


@contextmanager
def opened(server: Postgres, name: str) -> Iterator[Database]:
    """A database of `server`."""
    db = Database(server.url(name), SystemClock(), SystemIds(), name="backup", pool_size=1)
    try:
        yield db
    finally:
        db.close()


def read(source: Path, progress: Progress) -> Backup:
    """What the backup in `source` holds, every file looked at. Raises `NoBackup`, or `CannotRunHere` and
    `NewerDatabase` when it does not fit this program."""
    try:
        known = json.loads((source / DESCRIPTION).read_text())
        found = Backup(**known) if known["format"] <= FORMAT else None
    except OSError as error:
        raise NoBackup(f"{source} holds no backup: {DESCRIPTION}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoBackup(f"{source / DESCRIPTION} is damaged.") from error
    if found is None:
        raise CannotRunHere(
            f"The backup in {source} was made by a newer version of Hearback: restore it with that."
        )
    ours = major()
    if found.postgres != ours:
        raise CannotRunHere(
            f"The backup in {source} is of PostgreSQL {found.postgres}, and this program has {ours}: "
            f"restore it with Hearback {found.program}, which made it."
        )
    for name, there in found.tables.items():
        if there > head(name):
            raise NewerDatabase(
                f"The backup in {source} has tables of a newer version ({name} at {there}, this program "
                f"knows {head(name)}): restore it with Hearback {found.program}, which made it."
            )
    with progress.step("Checking each file of the backup"):
        present = digests(source)
        bad = [name for name, digest in found.files.items() if present.get(name) != digest]
        if bad:
            many = f", and {len(bad) - 1} more of its {len(found.files)} files are" if bad[1:] else ""
            raise NoBackup(
                f"{source / bad[0]} is {'damaged' if bad[0] in present else 'gone'}{many}: this backup "
                "cannot be restored any more. Take an older one, and look at the disk that it lies on."
            )
    return found


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in `folder`, by its path in there, but not of the description."""
    found = {}
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(place) / name
            if path != folder / DESCRIPTION:
                found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
