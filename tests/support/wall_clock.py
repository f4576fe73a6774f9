"""A machine's wall clock that can be put forward and back, in processes that run as they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from shared.clock import SystemClock

OFF = "WALL_CLOCK_IS_OFF_BY"
_ROOT = Path(__file__).resolve().parents[2]


class WallClock(SystemClock):
    """True time plus what a file says, in seconds; the file is read at each look."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(self.file.read_text()))

    def set(self, at: datetime) -> None:
        """Puts the clock of all that read the file to `at`, from where it goes on."""
        new = self.file.with_suffix(".new")
        new.write_text(str((at - datetime.now(UTC)).total_seconds()))
        new.replace(self.file)

    def environment(self) -> dict[str, str]:
        """Makes this the clock of a process."""
        return {OFF: str(self.file), "PYTHONPATH": f"{_ROOT / 'tests/support/clock_off'}:{_ROOT}"}
