"""Becoming the owner of the data folder: root hands the command over to the user who may run PostgreSQL."""

from __future__ import annotations

import compileall
import os
import sys
from pathlib import Path

from shared.embedded.home import check_format, unwritable
from shared.embedded.owner import CannotRunHere, check_reach, find_owner
from shared.embedded.supervisor import environment

_ROOT = Path(__file__).resolve().parent.parent.parent


def become_owner(home: Path) -> None:
    """As root: makes the data folder, gives it to its user, and runs this very command again as that user.

    Otherwise nothing. Raises `CannotRunHere` when root cannot become that user.
    """
    if os.geteuid() != 0:
        return
    check_format(home)
    owner = find_owner(home)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        tops = (path for folder in (home, home / "run", home / "log") for path in (folder, *_listed(folder)))
        # A command of root's may have left a file; looking at all of PostgreSQL's each time would take long.
        if any(path.lstat().st_uid != owner.uid for path in tops if os.path.lexists(path)):
            owner.own(home, deep=True)
    except OSError as error:
        raise CannotRunHere(unwritable(home, error)) from error
    # Its user may not write beside the program, and would compile it anew at each start.
    for package in ("shared", "services"):
        compileall.compile_dir(_ROOT / package, quiet=2)
    check_reach(owner, Path(sys.executable), _ROOT / "shared", home)
    command = owner.command([sys.executable, "-m", "shared.cli", *sys.argv[1:]])
    sys.stdout.flush()
    os.execvpe(command[0], command, environment(home))  # noqa: S606 (no shell is wanted)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
