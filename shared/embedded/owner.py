"""Who owns the data folder: ourselves, or, for root, a system user of its own that PostgreSQL accepts."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import HearbackError

USER = "hearback"

# Linux capability numbers (linux/capability.h).
_DAC_OVERRIDE, _DAC_READ_SEARCH, _SETPCAP = 1, 2, 8


class CannotRunHere(HearbackError):
    """This machine lacks something that the embedded installation needs; the message says what to do."""

    slug = "cannot-run-here"


@dataclass(frozen=True, slots=True)
class Owner:
    """The user that everything runs as, and the words in front of a command that make it so."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv`, run as this user."""
        return [*self.prefix, *argv]

    def own(self, path: Path, *, deep: bool = False) -> None:
        """Gives `path` (with `deep` also what lies under it) to this user, when we are root."""
        if os.geteuid() != 0 or not path.exists():
            return
        os.chown(path, self.uid, self.gid)
        if deep:
            for folder, folders, files in os.walk(path):
                for name in (*folders, *files):
                    os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)


def find_owner(home: Path | None = None) -> Owner:
    """The user to run as: the present one; for root whoever owns `home`, else the user `hearback`.

    That system user is made when it is not there yet.
    Raises `CannotRunHere` when root cannot become that user.
    """
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise CannotRunHere(
            "PostgreSQL refuses to run as root, and the program setpriv (package util-linux) is not here "
            "to become another user. Install it, or run this as an ordinary user."
        )
    owned = home.stat() if home is not None and home.exists() else None
    if owned is not None and owned.st_uid != 0:
        uid, gid = owned.st_uid, owned.st_gid
    else:
        user = _system_user()
        uid, gid = user.pw_uid, user.pw_gid
    return Owner(uid, gid, (setpriv, *_setpriv_options(uid, gid)))


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    adduser = shutil.which("adduser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd:
        command = [useradd, "-r", "-M", "-U", "-s", "/bin/false", USER]
    elif adduser:  # BusyBox has this one only
        command = [adduser, "-S", "-H", "-D", USER]
    else:
        command = []
    done = subprocess.run(command, capture_output=True, text=True, check=False) if command else None
    try:
        return pwd.getpwnam(USER)  # another `up` may have made it in between
    except KeyError:
        said = f" ({done.stderr.strip()})" if done and done.stderr.strip() else ""
        raise CannotRunHere(
            f"PostgreSQL refuses to run as root, and the system user {USER} could not be made{said}. "
            f"Make it with `useradd -r -M {USER}`, or run this as an ordinary user."
        ) from None


def _setpriv_options(uid: int, gid: int) -> list[str]:
    """Lets the user read what root may (the program may lie under a closed folder), and write its own."""
    bounding = _bounding_set()
    identity = ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
    if not bounding >> _SETPCAP & 1:
        return [*identity, "--"]
    # With no capability at all the user must be able to reach the program; `check_reach` says so when not.
    capability = next(
        (
            name
            for name, bit in (("+dac_read_search", _DAC_READ_SEARCH), ("+dac_override", _DAC_OVERRIDE))
            if bounding >> bit & 1
        ),
        "",
    )
    caps = f"-all,{capability}" if capability else "-all"
    return [
        *identity,
        # Without this, access(2), which PostgreSQL and supervisord ask, knows nothing of capabilities.
        "--securebits=+no_setuid_fixup",
        f"--inh-caps={caps}",
        f"--ambient-caps={caps}",
        f"--bounding-set={caps}",
        "--",
    ]


def _bounding_set() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    except OSError:
        pass
    return 0


def check_reach(owner: Owner, *paths: Path) -> None:
    """Raises `CannotRunHere` naming the first of `paths` that the user may not read."""
    if not owner.prefix:
        return
    probe = "import sys, os; sys.exit(not os.access(sys.argv[1], os.R_OK, effective_ids=True))"
    for path in paths:
        done = subprocess.run(
            owner.command([sys.executable, "-I", "-c", probe, str(path)]),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotRunHere(
                f"Run as root, Hearback works as user number {owner.uid}, who may not read {path} here. "
                "Put it where every user can read it, or run this as an ordinary user."
            )
