"""Processes by pid file: to know them again after everything else was killed, and to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from shared.embedded.files import write_private


@contextlib.contextmanager
def pid_file(home: Path, name: str) -> Iterator[None]:
    """Notes this process in `home/run/NAME.pid` while it lives, with its start time."""
    path = home / "run" / f"{name}.pid"
    me = os.getpid()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, f"{me} {psutil.Process(me).create_time()}\n")
    try:
        yield
    finally:
        if os.getpid() == me:  # not in a forked child that unwinds
            with contextlib.suppress(OSError, ValueError):
                if path.read_text().split()[:1] == [str(me)]:
                    path.unlink()


def read_pid_file(path: Path) -> psutil.Process | None:
    """The process that wrote `path` by `pid_file`, or None when it is gone, its number another's now."""
    try:
        number, began = path.read_text().split()
        process = psutil.Process(int(number))
        alive = process.status() != psutil.STATUS_ZOMBIE
        return process if alive and abs(process.create_time() - float(began)) < 1 else None
    except (OSError, ValueError, psutil.Error):
        return None


def noted(home: Path) -> list[psutil.Process]:
    """The live processes that noted themselves in `home/run`; supervisord's own file is not among them."""
    files = [path for path in (home / "run").glob("*.pid") if path.name != "supervisord.pid"]
    return [process for process in map(read_pid_file, files) if process is not None]


def supervisord(home: Path) -> psutil.Process | None:
    """The live supervisord of this folder, whether it answers or not."""
    # It notes its number only; its command line names our configuration.
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((home / "run" / "supervisord.pid").read_text()))
        if str(home / "run" / "supervisord.conf") in process.cmdline():
            return process
    return None


def backends(data: Path) -> list[psutil.Process]:
    """PostgreSQL's processes that work in `data`, with or without a postmaster above them."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres":
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()) == data:
                    found.append(process)
    return found


def end(processes: Iterable[psutil.Process], *, by: int = signal.SIGTERM, patience: float = 20) -> None:
    """Ends `processes` and their children; kills those that take longer than `patience` seconds."""
    family = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            family += [process, *process.children(recursive=True)]
            process.send_signal(by)
    until = time.monotonic() + patience
    left = _alive(family)
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left = _alive(left)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
