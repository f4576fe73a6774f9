"""Posts the mailbox's webhooks back, signed, as often as it takes, in every process that serves it.

The same thread drops what the mailbox has kept for long enough.
"""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from typing import Any

import structlog
import urllib3

from shared.channels.mailbox import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from shared.db import Database
from shared.mailbox import store
from shared.settings import Settings

log = structlog.get_logger("hearback.mailbox")

BATCH = 20
TIMEOUT_SECONDS = 10.0
# A batch that hangs throughout is done before others may take its webhooks again.
LEASE = timedelta(seconds=BATCH * TIMEOUT_SECONDS + 10)
IDLE_SECONDS = 1.0
FORGET_SECONDS = 3600.0
BATCH_FORGOTTEN = 1000
MAX_ATTEMPTS = 40  # with waits of up to five minutes: about three hours


class Poster:
    """A thread that is started with the first request, so after a server has forked its workers."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db
        self.url = f"{settings.survey_url}/webhooks/mailbox"
        self.http = urllib3.PoolManager(num_pools=2, maxsize=2)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._process = 0

    def wake(self) -> None:
        """There is something to post now; starts the thread of this process when it does not run yet."""
        self._wake.set()
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._run, name="mailbox-webhooks", daemon=True).start()

    def wake_once(self) -> None:
        """Starts the thread of this process, unless it runs already."""
        if self._process != os.getpid():
            self.wake()

    def stop(self) -> None:
        """Ends the thread soon."""
        self._stop.set()
        self._wake.set()

    def step(self) -> bool:
        """Posts what is due; returns whether there may be more."""
        with self.db.transaction() as tx:
            due = store.due_webhooks(tx, BATCH, LEASE)
        for webhook in due:
            error = self._post(webhook["body"])
            with self.db.transaction() as tx:
                if error is None:
                    store.webhook_done(tx, webhook["id"])
                elif webhook["attempts"] >= MAX_ATTEMPTS:
                    store.webhook_failed(tx, webhook["id"], None, error)
                else:
                    wait = min(300, 2 ** min(webhook["attempts"] - 1, 9))
                    store.webhook_failed(tx, webhook["id"], tx.now + timedelta(seconds=wait), error)
        return len(due) == BATCH

    def forget(self) -> None:
        """Drops what is past its days, in short transactions."""
        gone = BATCH_FORGOTTEN
        while gone == BATCH_FORGOTTEN:
            with self.db.transaction() as tx:
                gone = store.forget(tx, BATCH_FORGOTTEN)

    def _post(self, body: dict[str, Any]) -> str | None:
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        timestamp = str(int(self.db.clock.now().timestamp()))
        try:
            answer = self.http.request(
                "POST",
                self.url,
                body=raw,
                headers={
                    "Content-Type": "application/json",
                    TIMESTAMP_HEADER: timestamp,
                    SIGNATURE_HEADER: sign(self.settings.key("mailbox-webhook"), timestamp, raw),
                },
                timeout=TIMEOUT_SECONDS,
                retries=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            return type(error).__name__
        return None if 200 <= answer.status < 300 else f"HTTP {answer.status}"

    def _run(self) -> None:
        forgot = float("-inf")
        while not self._stop.is_set():
            self._wake.clear()
            try:
                more = self.step()
                if not more and time.monotonic() - forgot >= FORGET_SECONDS:
                    self.forget()
                    forgot = time.monotonic()
            except Exception as error:
                # The database may be away for a while; the thread must outlive that.
                log.warning("mailbox.webhooks_wait", error=type(error).__name__)
                more = False
            if not more:
                self._wake.wait(IDLE_SECONDS)
