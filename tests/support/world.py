"""All three services in one process, on a real PostgreSQL and the embedded log, moved step by step by hand.

Nothing runs by itself: relays, consumers and senders are stepped, the clock is set, ids come from a seed. So
a history is the same again whenever the same steps are taken.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from services.followup import handlers as followup_handlers
from services.followup import notice_sender
from services.followup import rebuild as followup_rebuild
from services.followup.notice_sender import NoticeSender
from services.followup.permits import SurveyPermits
from services.reporting import handlers as reporting_handlers
from services.reporting import rebuild as reporting_rebuild
from services.survey import handlers as survey_handlers
from services.survey import rebuild as survey_rebuild
from shared.channels import Message
from shared.db import Database, Row, Tx
from shared.errors import Unavailable
from shared.events.catalog import TOPICS
from shared.events.consumer import Consumer
from shared.events.relay import Relay
from shared.ids import SystemIds
from shared.log.postgres import RETENTION, EmbeddedLog
from shared.roles import RoleContext
from shared.settings import SERVICES, Settings
from shared.web import service_auth
from tests.support.asking import START, Asking, Provider
from tests.support.followup import Followup
from tests.support.postgres import FreshDatabases
from tests.support.running import TOKEN

HANDLERS: Mapping[str, Any] = {
    "survey": survey_handlers,
    "followup": followup_handlers,
    "reporting": reporting_handlers,
}
REBUILDS: Mapping[str, Any] = {
    "survey": survey_rebuild,
    "followup": followup_rebuild,
    "reporting": reporting_rebuild,
}


class SeededIds:
    """Ids that rise, and tokens, the same each time."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._random, self._count = random.Random(1), itertools.count(1)

    def new(self) -> str:
        value = next(self._count) << 80 | 0x7 << 76 | 0x2 << 62 | self._random.getrandbits(60)
        return str(uuid.UUID(int=value))

    def token(self) -> str:
        return self._random.randbytes(16).hex()


class DirectPermits(SurveyPermits):
    """Followup asks survey's app itself rather than over a socket."""

    def __init__(self, settings: Settings, survey: Asking) -> None:
        super().__init__(settings, survey.clock)
        self.client = survey.app.test_client()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = service_auth.header(self.settings, "permits", self.clock)
        answer = self.client.post(path, json=body, headers=headers)
        if answer.status_code not in (200, 204):
            raise Unavailable(f"Survey answered {answer.status_code}")
        return answer.get_json(silent=True) or {}


@dataclass
class World:
    """One installation. `reset` begins a new one in the same databases, which is quicker than making them."""

    settings: Settings
    ids: SeededIds = field(default_factory=SeededIds)

    def __post_init__(self) -> None:
        self.provider = Provider()
        self.survey = Asking(self.settings)
        self.survey.provider = self.provider
        self.clock = self.survey.clock
        self.followup = Followup(self.settings, self.clock)
        self.log = EmbeddedLog(self.settings.database_urls["log"], self.clock)
        self.dbs: dict[str, Database] = {
            "survey": self.survey.db,
            "followup": self.followup.db,
            "reporting": Database(
                self.settings.database_urls["reporting"], self.clock, self.ids, name="test"
            ),
            "log": self.log.db,
        }
        apps = [self.survey.app.extensions["hearback"].db, self.followup.app.extensions["hearback"].db]
        for db in (*self.dbs.values(), *apps):
            db.ids = self.ids
        self._closing = ExitStack()
        self._closing.enter_context(
            mock.patch.object(notice_sender, "transport", lambda _settings, _channel: self.provider)
        )
        for db in (self.dbs["reporting"], self.followup.db, apps[1]):
            self._closing.callback(db.close)
        self._closing.callback(self.log.close)
        self._closing.callback(self.survey.close)
        self.relays: dict[str, Relay] = {}

    def close(self) -> None:
        self._closing.close()

    def reset(self) -> None:
        """Empties every database and begins anew: the company, its first program, and nobody."""
        self.ids.reset()
        self.survey.reset()
        self.provider.refuse = None
        for name in ("followup", "reporting", "log"):
            with self.dbs[name].transaction() as tx:
                _empty(tx)
        self.log.ensure_topics()
        REBUILDS["survey"].republish(self.survey.db, ["settings"])  # `Asking` begins as if that was told
        context = RoleContext(self.settings, "followup", self.clock, SystemIds(), self.followup.db)
        self.notices = NoticeSender(context)
        self.notices.survey = DirectPermits(self.settings, self.survey)
        self.relays = {name: Relay(name, self.dbs[name], self.log.sink()) for name in ("survey", "followup")}

    # The log, moved by hand.

    def relay(self, service: str, *, twice: bool = False) -> None:
        """Everything in the outbox goes to the log; `twice`, as by a relay that died before it deleted it."""
        with self.dbs[service].transaction() as tx:
            rows = tx.all("SELECT * FROM outbox ORDER BY id") if twice else []
        self._flush(service)
        if rows:
            names = [name for name in rows[0] if name != "id"]
            with self.dbs[service].transaction() as tx:
                tx.values(
                    f"INSERT INTO outbox ({', '.join(names)}) VALUES %s",
                    [tuple(row[name] for name in names) for row in rows],
                )
            self._flush(service)

    def _flush(self, service: str) -> None:
        while self.relays[service].run_once():
            pass
        # A sweep is due every few seconds, and the clock may stand still.
        self.relays[service] = Relay(service, self.dbs[service], self.log.sink())
        while self.relays[service].run_once():
            pass

    def consume(self, service: str, batch: int = 500, batches: int | None = None) -> None:
        """A consumer applies `batches` batches of at most so many events, or all there are."""
        handlers = HANDLERS[service]
        source = self.log.source(service, handlers.TOPICS)
        try:
            consumer = Consumer(service, self.dbs[service], source, handlers.apply, batch=batch)
            for _ in range(batches) if batches is not None else itertools.count():
                if not consumer.run_once():
                    return
        finally:
            source.close()

    def step_back(self, service: str, events: int) -> None:
        """The consumer died after its commits, and its last places on the log were never noted."""
        with self.log.db.transaction() as tx:
            tx.execute(
                'UPDATE log_offset SET "offset" = greatest(0, "offset" - %s) WHERE consumer = %s',
                (events, service),
            )

    def rebuild(self, service: str) -> None:
        """As `hearback rebuild` does."""
        with self.dbs[service].transaction() as tx:
            REBUILDS[service].clear(tx)
        topics = HANDLERS[service].TOPICS
        for owner in SERVICES:
            theirs = [topic for topic in topics if TOPICS[topic].publisher == owner]
            if theirs:
                REBUILDS[owner].republish(self.dbs[owner], theirs)

    def settle(self) -> None:
        """Every event has been told and heard."""
        while True:
            for service in ("survey", "followup"):
                self.relay(service)
            for service in SERVICES:
                self.consume(service)
            if not any(self._waiting(name) for name in ("survey", "followup")):
                return

    def _waiting(self, name: str) -> bool:
        with self.dbs[name].transaction() as tx:
            return bool(tx.value("SELECT EXISTS (SELECT FROM outbox)"))

    def send_notices(self) -> list[Message]:
        """Followup's sender works until it is idle; what left just now."""
        before = len(self.provider.messages)
        while self.notices.step():
            pass
        return self.provider.messages[before:]

    def forget_the_past(self) -> None:
        """So much time passes that the log has forgotten what was told by now."""
        self.clock.advance(RETENTION + timedelta(days=2))
        self.log.maintain(self.clock.now())

    # What is there.

    def all(self, database: str, query: str, args: Sequence[Any] = ()) -> list[Row]:
        with self.dbs[database].transaction() as tx:
            return tx.all(query, args)

    def found(self, markers: Sequence[str]) -> list[str]:
        """Where any of these texts is, in any column of any table of any database: 'database.table: row'."""
        return [
            f"{name}.{row['place']}: {row['text'][:300]}"
            for name, db in self.dbs.items()
            for row in _search(db, markers)
        ]


def link_of(message: Message) -> str:
    """The token of the answer page in a message."""
    found = TOKEN.search(message.text)
    assert found, message.text
    return found[1]


def _empty(tx: Tx) -> None:
    rows = tx.all(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE tablename NOT IN"
        " ('alembic_version', 'schema_floor', 'theme') AND schemaname IN ('public', 'mailbox')"
    )
    full = [row["name"] for row in rows if tx.value(f"SELECT EXISTS (SELECT FROM {row['name']})")]
    if full:
        tx.execute(f"TRUNCATE {', '.join(full)} CASCADE")


def _search(db: Database, markers: Sequence[str]) -> list[Row]:
    """Rows with any marker in them; bytes are read as the text they hold."""
    with db.transaction() as tx:
        columns = tx.all(
            """SELECT format('%I.%I', table_schema, table_name) AS place, array_agg(CASE
                WHEN data_type = 'bytea' THEN format('encode(%I, ''escape'')', column_name)
                ELSE format('%I::text', column_name) END) AS texts
            FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
            WHERE table_schema IN ('public', 'mailbox') AND table_type = 'BASE TABLE'
            GROUP BY 1 ORDER BY 1"""
        )
        found = []
        for row in columns:
            if not tx.value(f"SELECT EXISTS (SELECT FROM {row['place']})"):
                continue
            text = f"concat_ws(' ', {', '.join(row['texts'])})"
            found += tx.all(
                f"SELECT %s AS place, {text} AS text FROM {row['place']}"
                f" WHERE EXISTS (SELECT FROM unnest(%s::text[]) AS m WHERE strpos({text}, m) > 0)",
                (row["place"], list(markers)),
            )
        return found


def world(urls: FreshDatabases, home: Path) -> World:
    return World(
        Settings(home=home, secret="a secret of the tests, 32 characters or more", database_urls=urls)
    )


__all__ = ["START", "SeededIds", "World", "link_of", "world"]
