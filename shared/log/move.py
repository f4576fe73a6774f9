"""Moves events to another log: relays stop, consumers drain, the sink is switched, owners tell again, and
the log that was left is emptied."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator

import psycopg2

from shared.db import Database
from shared.errors import HearbackError, Unavailable
from shared.events import relay
from shared.events.catalog import TOPICS
from shared.faults import crash_at
from shared.log import in_use, open_log
from shared.log.in_use import NAMES, InUse, WrongLog
from shared.settings import LOGS, SERVICES, Settings

LOCK = 0x4842_0004
# Nobody reads when the number of unread events has not fallen for so long (s).
_STUCK_SECONDS = 60.0
# Starting on another log is not a move: what is only on its way is waited for, no more.
_ON_ITS_WAY_SECONDS = 5.0
_EMPTYING_SECONDS = 20.0

Told = Callable[[str], None]


class NotEmptied(HearbackError):
    """Everything was moved, and the log that events left could not be emptied."""

    slug = "not-emptied"


def move(settings: Settings, to: str, told: Told) -> bool:
    """Moves all events to the log `to`; returns False when they are there already. `told` hears of each step.

    The web keeps writing to the outboxes meanwhile. Killed at any moment, it leaves the relays standing
    still, and nothing lost; run again, it goes on. Asked to move to where the events still are, it takes
    a move that was begun back. Raises `WrongLog` when it cannot be done, and then nothing is moved.
    """
    with _databases(settings) as databases, _alone(databases):
        present = _present(databases, settings)
        if all(one.log == to for one in present.values()):
            moved = any(one.moving_to for one in present.values())
            _say(databases, "moving_to = NULL")
            _finish(settings, databases, to, told)
            return moved
        _not_half_the_other_way(present, to)
        target = open_log(settings, name=to)
        try:
            told(f"making the topics of {NAMES[to]}")
            target.ensure_topics()
        finally:
            target.close()
        try:
            told("stopping the relays")
            _stand_still(databases, to)
            crash_at("move.still")
            _drain(settings, next(one.log for one in present.values() if one.log != to), told, _STUCK_SECONDS)
        except BaseException:
            if all(one.log != to for one in present.values()):
                _say(databases, "moving_to = NULL")
            raise
        crash_at("move.drained")
        _switch(databases, to)
        _finish(settings, databases, to, told)
        return True


def start_with(settings: Settings, told: Told) -> None:
    """For whoever starts everything: lets the settings choose another log when the present one is read.

    A service whose database was lost and made anew starts on the log of the others. Raises `WrongLog` when
    the present log is not read, or when nobody can tell; then all is as it was.
    """
    to = settings.log
    if to is None:
        with _databases(settings) as databases:
            _present(databases, settings)
        return
    with _databases(settings) as databases, _alone(databases):
        present = _present(databases, settings)
        if all(one.log == to for one in present.values()):
            return
        old = next(one.log for one in present.values() if one.log != to)
        begun = next((one.moving_to for one in present.values() if one.moving_to), None)
        if begun:
            raise WrongLog(
                f"A move to {NAMES[begun]} was begun and not ended: start without HEARBACK_LOG, and finish "
                f"it with hearback log move --to {begun}."
            )
        try:
            _stand_still(databases, to)
            _drain(settings, old, lambda _: None, _ON_ITS_WAY_SECONDS)
        except Exception as error:
            _say(databases, "moving_to = NULL")
            raise WrongLog(in_use.refusal(settings, old, to)) from error
        _switch(databases, to)
        try:
            _finish(settings, databases, to, told)
        except NotEmptied as error:
            told(error.message)


def _present(databases: dict[str, Database], settings: Settings) -> dict[str, InUse]:
    """The log of each service; one that has none yet begins on that of the others, or as the settings say."""
    known = []
    for db in databases.values():
        with db.transaction() as tx:
            known.append(in_use.read(tx))
    others = next((one.moving_to or one.log for one in known if one), settings.log)
    return {name: in_use.begin(db, others) for name, db in databases.items()}


def _not_half_the_other_way(present: dict[str, InUse], to: str) -> None:
    """What one service has put on its new log the others have not read: half-way there is no way back."""
    ahead = {one.moving_to for one in present.values() if one.moving_to} & {
        one.log for one in present.values()
    }
    if ahead and to not in ahead:
        other = ahead.pop()
        raise WrongLog(
            f"A move to {NAMES[other]} is half done: finish it first, with hearback log move --to {other}."
        )


def _stand_still(databases: dict[str, Database], to: str) -> None:
    """From here on no relay sends until the move is over: each looks under its shard's lock."""
    for db in databases.values():
        with db.transaction() as tx:
            tx.execute("UPDATE log_in_use SET moving_to = %(to)s WHERE log <> %(to)s", {"to": to})
    for db in databases.values():
        relay.wait_until_still(db)


def _drain(settings: Settings, name: str, told: Told, patience: float) -> None:
    """Returns when every service has applied all that is on the log. Raises `WrongLog` when nobody does."""
    log = open_log(settings, name=name)
    try:
        best, since = -1, time.monotonic()
        while True:
            try:
                left = in_use.unread(log)
            except Unavailable:
                if time.monotonic() - since > patience:
                    raise
                time.sleep(0.2)
                continue
            if not left:
                return
            count = sum(left.values())
            told(f"waiting until {NAMES[name]} is read: {count} events to go")
            if count < best or best < 0:
                best, since = count, time.monotonic()
            if time.monotonic() - since > patience:
                raise WrongLog(
                    f"Nothing was moved: on {NAMES[name]} {in_use.said(left)}, and that has not become less"
                    f" for {patience:.0f} s. Do their consumers run? `hearback status` tells."
                )
            time.sleep(0.2)
    finally:
        log.close()


def _switch(databases: dict[str, Database], to: str) -> None:
    for name, db in databases.items():
        with db.transaction() as tx:
            tx.execute("UPDATE log_in_use SET log = %s, moving_to = NULL, told = false", (to,))
        if name == SERVICES[0]:
            crash_at("move.half_switched")


def _finish(settings: Settings, databases: dict[str, Database], to: str, told: Told) -> None:
    """Has each owner publish what its compacted topics have to hold, and empties the log that events left.

    Does nothing when that was done; killed, it is done again by the next move. Raises `NotEmptied`.
    """
    if all(_was_told(db) for db in databases.values()):
        return
    for owner, db in databases.items():
        topics = [topic.name for topic in TOPICS.values() if topic.compacted and topic.publisher == owner]
        if topics and not _was_told(db):
            told(f"having {owner} tell {' and '.join(topics)} again")
            importlib.import_module(f"services.{owner}.rebuild").republish(db, topics)
            crash_at("move.told")
    [left] = [name for name in LOGS if name != to]
    told(f"emptying {NAMES[left]}")
    until = time.monotonic() + _EMPTYING_SECONDS
    while True:
        try:
            log = open_log(settings, name=left)
            try:
                log.discard()
            finally:
                log.close()
            break
        except (HearbackError, psycopg2.Error) as error:
            # A consumer that has not yet seen that events have left may be reading it.
            if time.monotonic() > until:
                raise NotEmptied(
                    f"Events are on {NAMES[to]} now, but {NAMES[left]} still holds what customers said: it"
                    f" could not be emptied ({str(error).splitlines()[0]}). Mend that, and then run"
                    f" hearback log move --to {to} again."
                ) from error
            time.sleep(1)
    crash_at("move.emptied")
    _say(databases, "told = true")


def _was_told(db: Database) -> bool:
    with db.transaction() as tx:
        return bool(tx.value("SELECT told FROM log_in_use"))


def _say(databases: dict[str, Database], what: str) -> None:
    for db in databases.values():
        with db.transaction() as tx:
            tx.execute(f"UPDATE log_in_use SET {what}")  # noqa: S608 (ours)


@contextlib.contextmanager
def _databases(settings: Settings) -> Iterator[dict[str, Database]]:
    found = {service: in_use.service_database(settings, service) for service in SERVICES}
    try:
        yield found
    finally:
        for db in found.values():
            db.close()


@contextlib.contextmanager
def _alone(databases: dict[str, Database]) -> Iterator[None]:
    """Only one move at a time; the server gives the lock back whatever becomes of us."""
    connection = databases[SERVICES[0]].connect()
    try:
        with connection.cursor() as cur:
            # Bound to a transaction, so that it goes with it also where a pooler is in between.
            cur.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            cur.execute("SELECT pg_try_advisory_xact_lock(%s) AS ours", (LOCK,))
            row = cur.fetchone()
        if row is None or not row["ours"]:  # type: ignore[call-overload] # a row by name
            raise WrongLog("Another `hearback log move` is at work; wait for it, or end it.")
        yield
    finally:
        connection.close()
