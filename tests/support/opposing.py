"""Paths that lock the same rows, run against each other from threads: they must not wait in a ring."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from psycopg2.errors import DeadlockDetected

Work = Callable[[random.Random], object]


def oppose(rounds: int, *works: Work, steps: Sequence[Callable[[], object]] = ()) -> int:
    """Runs each of `works` `rounds` times at least, all at once, and meanwhile `steps` one after the other;
    returns how often PostgreSQL had to break a ring. Raises what else goes wrong.
    """
    over, rings, turns = threading.Event(), [0], threading.Semaphore(0)

    def count(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if not isinstance(error.__cause__ or error, DeadlockDetected):
                raise
            rings[0] += 1

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
    return rings[0]
