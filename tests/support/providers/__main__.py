"""The stand-in as a process of its own: prints the settings to send through it, and reports what it took.

    python -m tests.support.providers [--port N] [--webhooks http://127.0.0.1:8080] [--public-url URL]
        [--copies N] [--shuffled]

Its first line on standard output is a JSON object of environment variables. At SIGTERM it prints another:
how many mails and texts it took, how many deliveries among them were new, and how many webhooks were refused.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Mapping

import urllib3

from tests.support.providers.stand_in import Hooks, Reporter, StandIn


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--webhooks", default="")
    options.add_argument("--public-url", default="")
    options.add_argument("--copies", type=int, default=1)
    options.add_argument("--shuffled", action="store_true")
    given = options.parse_args()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    providers = StandIn(given.port)
    http = urllib3.PoolManager(maxsize=4)

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> int:
        try:
            return http.request(
                "POST", given.webhooks + path, body=body, headers=headers, retries=False, timeout=30
            ).status
        except urllib3.exceptions.HTTPError:
            return 0

    reporter = None
    if given.webhooks:
        hooks = Hooks(providers, post, given.public_url or given.webhooks)
        reporter = Reporter(providers, hooks, copies=given.copies, shuffled=given.shuffled)
    print(json.dumps(providers.environment()), flush=True)
    over.wait()
    if reporter:
        reporter.close()
    ids = providers.sendgrid.delivery_ids() + providers.twilio.delivery_ids()
    taken = {"mails": len(providers.sendgrid.mails), "texts": len(providers.twilio.texts)}
    refused = reporter.refused if reporter else 0
    print(json.dumps({**taken, "deliveries": len(set(ids)), "webhooks_refused": refused}), flush=True)
    providers.close()


main()
