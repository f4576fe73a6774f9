"""Paths that lock the same rows, run against each other from threads: they must not wait in a ring."""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from psycopg2.errors import DeadlockDetected

Work = Callable[[random.Random], object]


def oppose(rounds: int, *works: Work, steps: Sequence[Callable[[], object]] = ()) -> list[str]:
    """Runs each of `works` `rounds` times at least, all at once, and meanwhile `steps` one after the other;
    returns the rings that PostgreSQL had to break, each with where. Raises what else goes wrong.
    """
    over, turns = threading.Event(), threading.Semaphore(0)
    rings: list[str] = []

    def count(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            ring = error.__cause__ or error
            if not isinstance(ring, DeadlockDetected):
                raise
            where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(ring.__traceback__)]
            rings.append(f"{' '.join(where)}: {ring}")

    def loop(number: int) -> None:
        chosen = random.Random(number)
        done = 0
        try:
            while done < rounds or not over.is_set():
                count(lambda: works[number](chosen))
                turns.release()
                done += 1
        except BaseException:
            over.set()
            turns.release(len(steps) * rounds)
            raise

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(loop, number) for number in range(len(works))]
        try:
            for step in steps:
                for _ in range(rounds):
                    turns.acquire()
                count(step)
        finally:
            over.set()
        for one in running:
            one.result()
    return rings
