"""The checker, run beside the services with `python -m`; what was acknowledged comes as JSON."""

from __future__ import annotations

import json
import sys

from shared.settings import load
from tests.support.checker import check
from tests.support.history import Ack, Answers, Person
from tests.support.running import Running


def main() -> None:
    """Waits until everything has arrived; an error says what is lost, doubled or out of order."""
    told = json.load(sys.stdin)
    answers = Answers(Running(load()), told["seed"])
    answers.acks = [Ack(**{**ack, "person": Person(**ack["person"])}) for ack in told["acks"]]
    answers.running.settle()
    check(answers)
    print(f"{len(answers.acks)} acknowledged answers are all there, each once and in order")


main()
