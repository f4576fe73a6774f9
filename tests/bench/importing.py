"""The import of a large file beside COPY: the same checks of every cell in plain Python, then one COPY."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions

from services.survey import addresses, importer
from services.survey.commands import company, imports
from services.survey.domain import values
from services.survey.edge import opt_out_fingerprints
from shared.ids import SystemIds
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.running import Running

CUSTOMERS = 200_000
_HEAD = ["external id", "name", "email", "phone", "account", "account manager", "language", "plan"]
_TABLE = """
DROP TABLE IF EXISTS customer;
CREATE TABLE customer (id uuid PRIMARY KEY, external_id text UNIQUE, name text, email text,
    email_key text UNIQUE, phone text UNIQUE, account text, manager_email text, language text,
    properties jsonb)"""


def customers(ground: Ground, repeats: int) -> list[Row]:
    """Customers/s of an upload that runs to its end ÷ of the plain script, on the same file."""
    ours, base = [], []
    missing = doubled = 0
    with tempfile.TemporaryDirectory(prefix="hearback-csv-") as folder:
        file = Path(folder) / "customers.csv"
        _write(file)
        bare = ground.postgres.empty("survey")
        for _ in range(repeats):
            with ground.installation() as running:
                ours.append(CUSTOMERS / _import(running, file))
                missing, doubled = _counted(running)
            base.append(CUSTOMERS / _copy(bare, file))
    return [
        Row(
            f"import of {CUSTOMERS:,} customers", "customers/s", ours, base, 0.5, missing=missing,
            doubled=doubled,
        )
    ]  # fmt: skip


def _write(file: Path) -> None:
    """Two in three have a phone; ten customers to an account, a hundred accounts to a manager."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(_HEAD)
        for n in range(CUSTOMERS):
            phone = f"+49 30 {1_000_000 + n}" if n % 3 else ""
            writer.writerow(
                [
                    f"crm-{n}", f"Customer {n}", f"customer.{n}@firm{n // 10}.example.com", phone,
                    f"Firm {n // 10}", f"manager{n // 1_000}@example.com", "de" if n % 2 else "en", "pro",
                ]
            )  # fmt: skip


def _import(running: Running, file: Path) -> float:
    """Seconds from the upload's first byte to the end of the run."""
    db = running.db("survey")
    fingerprints = opt_out_fingerprints(running.settings)
    with db.transaction() as tx:
        company.ensure(tx)
    began = time.perf_counter()
    with db.transaction() as tx:
        run = imports.begin(tx, file.name, "bench", None)
    with file.open("rb") as stream:
        importer.receive(db, run, stream)
    assert importer.work(db, fingerprints, run_id=run)
    return time.perf_counter() - began


def _counted(running: Running) -> tuple[int, int]:
    with running.db("survey").transaction() as tx:
        there = int(tx.value("SELECT count(DISTINCT external_id) FROM customer"))
        told = int(tx.value("SELECT count(*) FROM outbox WHERE type = 'customer.changed'"))
        keys = int(tx.value("SELECT count(DISTINCT key) FROM outbox WHERE type = 'customer.changed'"))
    return 2 * CUSTOMERS - there - keys, told - keys


def _copy(url: str, file: Path) -> float:
    """Seconds of the plain script."""
    began = time.perf_counter()
    with contextlib.closing(psycopg2.connect(url)) as db, db, db.cursor() as cur:
        cur.execute(_TABLE)
        with file.open(newline="") as text:
            cur.copy_expert("COPY customer FROM STDIN (FORMAT csv)", _Lines(_checked(text)))
        took = time.perf_counter() - began
        cur.execute("SELECT count(*) FROM customer")
        assert cur.fetchone() == (CUSTOMERS,)
    return took


def _checked(text: io.TextIOBase) -> Iterator[bytes]:
    """Each row as COPY takes it, when every cell is what it should be and nobody was there before."""
    ids = SystemIds()
    seen: set[str] = set()
    for row in csv.DictReader(text):
        email, phone = addresses.email(row["email"]), row["phone"]
        phone = addresses.phone(phone) if phone else ""
        keys = [key for key in (row["external id"], values.email_key(email), phone) if key]
        assert not any(key in seen for key in keys)
        seen.update(keys)
        manager = addresses.email(row["account manager"]).casefold()
        out = io.StringIO()
        csv.writer(out).writerow(
            [
                ids.new(), row["external id"], values.one_line(row["name"]), email, values.email_key(email),
                phone, values.one_line(row["account"]), manager, values.language(row["language"]),
                json.dumps({"plan": row["plan"]}),
            ]
        )  # fmt: skip
        yield out.getvalue().encode()


class _Lines(io.RawIOBase):
    """Lines as the file that COPY reads."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """A little less than `size`, in whole lines; nothing at the end."""
        parts, room = [], size - 1_000
        for line in self._lines:
            parts.append(line)
            room -= len(line)
            if room <= 0:
                break
        return b"".join(parts)
