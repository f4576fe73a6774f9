"""A real file system of a few hundred megabytes, to fill: of root's, or of a namespace of one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


class NoDisk(Exception):
    """This machine lets nobody mount anything; the message has its own words."""


@dataclass
class SmallDisk:
    """A tmpfs on the folder `at`, which is removed at the end.

    `prefix` are the words in front of a command that is to see it; `path` is where this process does.
    """

    at: Path
    megabytes: int
    prefix: tuple[str, ...] = field(default=(), init=False)
    path: Path = field(init=False)
    _holder: subprocess.Popen[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m,mode=0700", "tmpfs", str(self.at)]
        self.path = self.at
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if os.geteuid() == 0 or not (shutil.which("unshare") and shutil.which("nsenter")):
            raise NoDisk(done.stderr.strip())
        # Root of a namespace of its own may mount; a process keeps the namespace.
        script = f"{' '.join(mount)} && chown 0:0 {self.at} && echo mounted && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        if (said := self._holder.stdout.readline().strip()) != "mounted":
            self.close()
            raise NoDisk(said)
        pid = str(self._holder.pid)
        # In it, but as oneself again: PostgreSQL runs under no root.
        back = ("unshare", "-U", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}")
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", pid, *back)
        self.path = Path(f"/proc/{pid}/root{self.at}")

    def fill(self) -> Path:
        """Takes all room there is; returns the file that does, to be removed again."""
        ballast = self.path / "ballast"
        size = 1 << 30
        with ballast.open("wb") as file:
            while size >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:  # others take some of it meanwhile
                    size //= 2
        return ballast

    def close(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
        elif os.path.ismount(self.at):
            subprocess.run(["umount", "-l", str(self.at)], check=True)
