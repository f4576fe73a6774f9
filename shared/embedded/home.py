"""The data folder: made, checked and locked before anything is started in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.embedded.files import write_private
from shared.embedded.owner import CannotRunHere
from shared.errors import HearbackError
from shared.settings import POSTGRES_FILE, SECRET_FILE, Settings

FORMAT = 1
FORMAT_FILE = "format.json"


class NewerHome(HearbackError):
    """The data folder was made by a newer version of the program."""

    slug = "newer-home"


def prepare(home: Path, *, own_secret: bool, waiting: Callable[[], None] = lambda: None) -> bool:
    """Makes the data folder and what lies in it; returns whether it is new.

    `own_secret` when no secret is set from outside, so that one is made here; `waiting` is called when
    somebody else is at work in the folder. Raises `CannotRunHere` when the folder cannot be written,
    `NewerHome` when a newer version made it; then nothing is changed.
    """
    if any(home.glob("restor*")):
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        with locked(home, waiting):  # one that is at work is waited for
            finish_restores(home)
    check_format(home)
    if own_secret and not (home / SECRET_FILE).exists() and (home / POSTGRES_FILE).exists():
        raise CannotRunHere(
            f"The secret of this installation is gone: {home / SECRET_FILE} is not there, and "
            "HEARBACK_SECRET is not set. Restore the one or set the other: with a new one no link that was "
            "sent would work any more."
        )
    new = not (home / FORMAT_FILE).exists()
    try:
        for folder in (home, home / "log", home / "run"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / "run" / f"probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
        if new:
            write_private(home / FORMAT_FILE, json.dumps({"format": FORMAT}) + "\n")
        if own_secret and not (home / SECRET_FILE).exists():
            write_private(home / SECRET_FILE, secrets.token_urlsafe(48) + "\n")
    except OSError as error:
        raise CannotRunHere(unwritable(home, error)) from error
    return new


# All that an installation is, of what lies in its data folder.
STATE = ("postgres", POSTGRES_FILE, SECRET_FILE, FORMAT_FILE)
_SECRET_IN_USE = "secret-in-use"
RESTORING, _RESTORED, NEW, _OLD = "restoring", "restored", "new", "old"


def put_in(home: Path, ready: Path, stamp: str) -> Path | None:
    """Puts the state in `ready/new` in the place of the present one; the folder `ready` is in `home`.

    The present one is moved aside; returns where it is, or None when there was none. From the first step
    on it is finished by the next `prepare`, whatever becomes of us.
    """
    aside = home / f"before-restore-{stamp}"
    swap = home / f"{_RESTORED}-{stamp}"
    (ready / _OLD).mkdir(mode=0o700)
    ready.replace(swap)
    _finish(swap, aside)
    return aside if aside.exists() else None


def finish_restores(home: Path) -> None:
    """Ends a restore that was killed at its last step, and removes the copy of one killed before it.

    The caller holds the lock: what is found is nobody's any more.
    """
    # It has what customers said in it, and the secret.
    shutil.rmtree(home / RESTORING, ignore_errors=True)
    for swap in sorted(home.glob(f"{_RESTORED}-*")):
        _finish(swap, home / swap.name.replace(_RESTORED, "before-restore", 1))


def _finish(swap: Path, aside: Path) -> None:
    home = swap.parent
    for name in STATE:
        new, present, old = swap / NEW / name, home / name, swap / _OLD / name
        if new.exists():
            if present.exists():
                present.replace(old)
            new.replace(present)
    replaced = swap / _OLD
    if replaced.exists() and any(replaced.iterdir()):
        replaced.replace(aside)
    shutil.rmtree(swap)


def note_secret(settings: Settings) -> None:
    """Remembers which secret everything is started with, without keeping it."""
    write_private(settings.home / "run" / _SECRET_IN_USE, settings.key(_SECRET_IN_USE).hex() + "\n")


def check_secret(settings: Settings) -> None:
    """Raises `CannotRunHere` when these settings have another secret than what runs was started with."""
    try:
        noted = (settings.home / "run" / _SECRET_IN_USE).read_text().strip()
    except OSError:
        return  # nothing was started here, or by an older version
    if noted != settings.key(_SECRET_IN_USE).hex():
        raise CannotRunHere(
            "Hearback was started with another secret than this command has: set or unset HEARBACK_SECRET "
            "(and, while it is being changed, HEARBACK_PREVIOUS_SECRET) here as for `hearback up`."
        )


def unwritable(home: Path, error: OSError) -> str:
    """A sentence on why `home` cannot be used, and what to do."""
    why = (error.strerror or type(error).__name__).lower()
    whose = ""
    with contextlib.suppress(OSError, KeyError):
        import pwd

        uid = home.stat().st_uid
        if uid != os.geteuid():
            whose = f" (it belongs to {pwd.getpwuid(uid).pw_name})"
    return (
        f"The data folder {home} cannot be written: {why}{whose}. "
        "Make it yours, or choose another with HEARBACK_HOME=/some/folder."
    )


def check_format(home: Path) -> None:
    """Raises `NewerHome` when `home` is of a newer format than this program knows."""
    try:
        text = (home / FORMAT_FILE).read_text()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotRunHere(unwritable(home, error)) from error
    try:
        found = int(json.loads(text)["format"])
    except (ValueError, KeyError, TypeError):
        raise CannotRunHere(
            f"{home / FORMAT_FILE} is damaged: it should read {json.dumps({'format': FORMAT})}."
        ) from None
    if found > FORMAT:
        raise NewerHome(
            f"The data folder {home} is of format {found}, made by a newer version of Hearback; this one "
            f"knows formats up to {FORMAT}. Run the newer one, or choose another folder with HEARBACK_HOME."
        )


@contextlib.contextmanager
def locked(home: Path, waiting: Callable[[], None], timeout: float = 600) -> Iterator[None]:
    """Only one `up` or `down` at a time; `waiting` is called when another one has to be waited for.

    The kernel gives the lock back whatever becomes of us. Raises `CannotRunHere` after `timeout` seconds.
    """
    path = home / "run" / "lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise CannotRunHere(unwritable(home, error)) from error
    with file:
        until, told = time.monotonic() + timeout, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    waiting()
                    told = True
                if time.monotonic() > until:
                    raise CannotRunHere(
                        f"Another `hearback up` or `down` has been busy with {home} for {timeout:.0f} s; "
                        "see what it is at, or end it."
                    ) from None
                time.sleep(0.1)
        yield
