"""A whole installation in a temporary folder, driven through the real `hearback` command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import urllib3

from shared.embedded.postgres import free_port
from shared.provider_settings import PREFIXES

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Machine:
    """One installation. `close` stops it and removes its folder, whatever became of it."""

    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hearback-up-")) / "var")
    port: int = field(default_factory=free_port)
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """Words in front of each command."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Starts a `hearback` command."""
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith((*PREFIXES, "PYTEST_"))
        }
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "shared.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean
            | {"HEARBACK_HOME": str(self.home), "HEARBACK_PORT": str(self.port), "PYTHONPATH": str(ROOT)}
            | dict(self.env)
            | env,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a `hearback` command to its end (180 s at most)."""
        process = self.start(*arguments, **env)
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"hearback {' '.join(arguments)} did not end:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def up(self, **env: str) -> str:
        """`hearback up`; returns what it said. Fails with its words when it fails."""
        done = self.run("up", **env)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`hearback status --json`, as an object."""
        status: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return status

    def pid(self, program: str) -> int:
        """The process id of a program that supervisord keeps."""
        return next(int(part["pid"]) for part in self.status()["parts"] if part["name"] == program)

    def get(self, path: str) -> int:
        """The HTTP status of a page; 0 when nobody answers."""
        try:
            return urllib3.request("GET", self.url + path, retries=False, timeout=5.0, redirect=False).status
        except urllib3.exceptions.HTTPError:
            return 0

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in this installation's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("HEARBACK_HOME") == str(self.home)
                if mine and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_everything(self) -> int:
        """kill -9 of all processes, the process manager's and PostgreSQL's first; returns how many."""
        killed = 0
        while left := self.processes():
            left.sort(key=lambda process: ("supervisord" not in " ".join(process.cmdline()), process.pid))
            for process in left:
                try:
                    process.kill()
                    killed += 1
                except psutil.Error:
                    continue
            psutil.wait_procs(left, timeout=5)
        return killed

    def wait_for(self, met: Any, seconds: float = 60) -> None:
        """Waits until `met()` is true."""
        until = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < until, f"not within {seconds} s\n{self.logs()}"
            time.sleep(0.1)

    def logs(self, lines: int = 15) -> str:
        """The end of each log, for a failing test's message."""
        if not self.home.exists():
            return ""
        found = sorted((self.home / "log").glob("*.log"))
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in found
        )

    def close(self) -> None:
        if (self.home / "run" / "supervisord.pid").exists():
            self.run("down")
        self.kill_everything()
        shutil.rmtree(self.home.parent, ignore_errors=True)
