"""Python runs this before a process whose PYTHONPATH begins with this folder: its wall clock is then off."""

import os
import time
from pathlib import Path

from shared.clock import SystemClock
from tests.support.wall_clock import OFF, WallClock

_wall = WallClock(Path(os.environ[OFF]))
SystemClock.now = lambda self: _wall.now()  # type: ignore[method-assign]
# Ids are made by it.
time.time_ns = lambda: int(_wall.now().timestamp() * 1e9)
