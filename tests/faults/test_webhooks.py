"""Fault 20: a provider that says the same a hundred times at once."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import urllib3

from shared.channels.mailbox import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from tests.support.checker import check
from tests.support.history import History

TIMES = 100


def test_fault_20_the_same_webhook_a_hundred_times_at_once_has_one_effect(history: History) -> None:
    installation = history.running
    history.answer_all(revise=0)
    installation.settle()
    with installation.db("survey").transaction() as tx:
        delivery = tx.one("SELECT id FROM delivery WHERE kind = 'invitation' ORDER BY id LIMIT 1")
    assert delivery is not None
    body = {
        "id": "a-complaint-that-is-said-often",
        "type": "complained",
        "delivery_id": delivery["id"],
        "to": "",
        "text": "",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    raw = json.dumps(body).encode()
    stamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        TIMESTAMP_HEADER: stamp,
        SIGNATURE_HEADER: sign(installation.settings.key("mailbox-webhook"), stamp, raw),
    }
    http = urllib3.PoolManager(maxsize=TIMES, timeout=30, retries=False)
    together = threading.Barrier(TIMES)

    def post(_: int) -> int:
        together.wait()
        return http.request("POST", f"{installation.url}/webhooks/mailbox", body=raw, headers=headers).status

    with ThreadPoolExecutor(TIMES) as pool:
        statuses = list(pool.map(post, range(TIMES)))
    assert all(200 <= status < 300 for status in statuses), sorted(set(statuses))
    installation.settle()
    said = [
        entry
        for entry in installation.log().tail("deliveries", 1_000_000)
        if json.loads(entry.value or b"{}").get("state") == "complained"
    ]
    assert len(said) == 1
    with installation.db("reporting").transaction() as tx:
        assert tx.value("SELECT count(*) FROM delivery WHERE state = 'complained'") == 1
    check(history)
