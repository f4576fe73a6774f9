"""Named points at which a test may kill the process, or freeze it; inert unless `HEARBACK_CRASH_AT` (or
`HEARBACK_FREEZE_AT`) names one."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

POINTS = frozenset(
    {
        "relay.before_send",
        "relay.let_through",
        "relay.mid_batch",
        "relay.after_flush",
        "consumer.before_commit",
        "consumer.after_commit",
        "web.after_commit",
        "sender.after_claim",
        "sender.after_hand_over",
        "sender.before_settle",
        "move.still",
        "move.drained",
        "move.half_switched",
        "move.told",
        "move.emptied",
    }
)

# "point" kills at its first passing; "point:3" at its third; with "point@FILE" only while FILE is there, and
# it is taken away first, so that the process does not die again after a restart.
_FREEZE = os.environ.get("HEARBACK_FREEZE_AT", "")
_WANTED = os.environ.get("HEARBACK_CRASH_AT", "") or _FREEZE
_passed = 0


def crash_at(point: str) -> None:
    """Kills this process without a word (SIGKILL) when `point` was asked for; otherwise does nothing.

    Asked to freeze, it stands still instead (SIGSTOP), and goes on from here when it is told to (SIGCONT).
    """
    if not _WANTED:
        return
    if point not in POINTS:
        raise ValueError(f"{point!r} is not a point of {sorted(POINTS)}")
    name, _, file = _WANTED.partition("@")
    name, _, times = name.partition(":")
    if name != point:
        return
    global _passed
    _passed += 1
    if _passed < int(times or 1):
        return
    if file:
        try:
            Path(file).unlink()
        except FileNotFoundError:
            return
    # To this very thread: of a process another one would hear of it, and this one go on for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if _FREEZE else signal.SIGKILL)
