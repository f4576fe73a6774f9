"""Runs an import: reads the file in pieces, checks rows, applies them in batches, survives a crash."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from threading import Event
from typing import Any, BinaryIO

import structlog

from services.survey import addresses
from services.survey.commands import customers, imports
from services.survey.commands.imports import ClaimLost, Progress
from services.survey.domain import csvrows, rows
from services.survey.domain.columns import LABELS, BadHeader, Columns, recognise
from services.survey.domain.csvrows import Record
from services.survey.domain.rows import BadRow, Row
from shared.db import Database, Tx, is_transient

BATCH = 1_000
MAX_MANAGERS = 500
OpenFile = Callable[[], Iterable[bytes]]
Watch = Callable[[Mapping[str, Any]], None]

_log = structlog.get_logger("hearback.import")


class Pieces(io.RawIOBase):
    """A file that comes in pieces; `position` is how many bytes were read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self.position += size
        return size


def file_pieces(file: BinaryIO) -> Iterator[bytes]:
    """A file on this machine, in pieces from its start."""
    file.seek(0)
    while piece := file.read(imports.PIECE):
        yield piece


class Importer:
    """Applies one claimed run's file. `open_file` gives its pieces from the start, each time anew."""

    def __init__(
        self,
        db: Database,
        run: Mapping[str, Any],
        open_file: OpenFile,
        fingerprints: addresses.Fingerprints,
        watch: Watch = lambda _: None,
    ) -> None:
        self.db = db
        self.row = run
        self.open_file = open_file
        self.fingerprints = fingerprints
        self.watch = watch
        self.managers: set[str] = set(run["unknown_managers"])
        self.checks = addresses.checks(run["region"])

    def run(self, stop: Event | None = None) -> str:
        """Goes on after the last committed line until the end; returns the state it leaves the run in.

        That is "done", "stopped", "failed" (with a message), "waiting" when `stop` was set, or "lost"
        when another worker had taken over. A database that is away raises; the run stays claimed and is
        taken up again later.
        """
        try:
            state, message = self._read(stop or Event())
        except BadHeader as error:
            state, message = "failed", str(error)
        except ClaimLost:
            return "lost"
        except Exception as error:
            if is_transient(error):
                raise
            _log.error("import failed", run=self.row["id"], exc_info=error)
            state, message = (
                "failed",
                "Something broke on our side. What was imported up to there stays; importing the same"
                " file again is safe, lines that are in already change nothing.",
            )
        with self.db.transaction() as tx:
            if state == "waiting":
                imports.release(tx, self.row)
            else:
                imports.end(tx, self.row, state, message)
        return state

    def _read(self, stop: Event) -> tuple[str, str | None]:
        encoding = self.row["encoding"] or csvrows.sniff_encoding(
            io.BufferedReader(Pieces(self.open_file()), imports.PIECE)
        )
        raw = Pieces(self.open_file())
        text = csvrows.open_text(io.BufferedReader(raw, imports.PIECE), encoding)
        columns, delimiter, line = _header(text)
        with self.db.transaction() as tx:
            imports.found_out(tx, self.row, encoding, delimiter)
        batch: list[Record] = []
        for record in csvrows.records(text, delimiter, line=line):
            if record.line <= self.row["done_line"]:
                continue
            batch.append(record)
            if len(batch) >= BATCH:
                if stop.is_set():
                    return "waiting", None
                if self._apply(batch, columns, raw.position):
                    return "stopped", None
                batch = []
        self._apply(batch, columns, raw.position)
        return "done", None

    def _apply(self, batch: list[Record], columns: Columns, position: int) -> bool:
        if not batch:
            return False
        good: list[Row] = []
        bad: list[tuple[int, str | None, str]] = []
        for record in batch:
            try:
                good.append(rows.read(record, columns, self.checks))
            except BadRow as error:
                bad.append((error.line, error.column, error.reason))
        stopping, progress, managers = customers.retrying(
            self.db,
            functools.partial(
                self._book, batch=batch, good=good, bad=bad, columns=columns, position=position
            ),
        )
        self.managers = managers
        self.watch({"rows": progress.rows, "failed": progress.failed, "bytes": progress.done_bytes})
        return stopping

    def _book(
        self,
        tx: Tx,
        batch: list[Record],
        good: list[Row],
        bad: list[tuple[int, str | None, str]],
        columns: Columns,
        position: int,
    ) -> tuple[bool, Progress, set[str]]:
        labels = {field: columns.labels[at] for at, field in columns.fields.items()}
        progress = Progress(
            rows=len(batch), done_line=batch[-1].last_line, done_bytes=position, errors=list(bad)
        )
        for outcome in customers.upsert(tx, good, self.fingerprints):
            if outcome.effect == "failed":
                column = outcome.column or ""
                said = labels.get(column)
                reason = outcome.reason or ""
                if said is None:
                    reason = f"{LABELS.get(column, column)} {reason}"
                progress.errors.append((outcome.row.line, said, reason))
            else:
                setattr(progress, outcome.effect, getattr(progress, outcome.effect) + 1)
        progress.errors.sort(key=lambda error: error[0])
        progress.failed = len(progress.errors)
        named = addresses.distinct(
            row.values["manager_email"] for row in good if row.values.get("manager_email")
        )
        managers = self.managers
        if len(managers) < MAX_MANAGERS:
            new = imports.unknown_managers(tx, [email for email in named if email not in managers])
            managers = managers | set(new[: MAX_MANAGERS - len(managers)])
        stopping = imports.advance(tx, self.row, progress, sorted(managers))
        return stopping, progress, managers


def _header(text: io.TextIOBase) -> tuple[Columns, str, int]:
    """The meaning of the columns, the delimiter, and how many physical lines that took."""
    said: str | None = None
    line = 0
    while True:
        first = text.readline(csvrows.MAX_LINE_CHARS)
        line += 1
        if not first:
            raise BadHeader("The file is empty.")
        if len(first) == csvrows.MAX_LINE_CHARS:
            raise BadHeader(
                f"The first line is longer than {csvrows.MAX_LINE_CHARS:,} characters: this is no CSV file."
            )
        # Excel's own way of naming the delimiter.
        if line == 1 and first.lower().startswith("sep=") and len(first.strip()) == 5:
            said = first.strip()[4]
        elif first.strip(' \t\r\n;,|"'):
            break
    if "\0" in first or first.startswith("PK\x03\x04"):
        raise BadHeader("This is no text file. Save the sheet as CSV (comma separated) and import that.")
    delimiter = said or csvrows.sniff_delimiter(first)
    # A name may go over two lines; the reader takes only as many as it needs.
    reader = csv.reader(chain([first], iter(text.readline, "")), delimiter=delimiter)
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        raise BadHeader("The first line cannot be read as column names.") from None
    return recognise(cells), delimiter, line + reader.line_num - 1


def receive(db: Database, run_id: str, stream: Any) -> int:
    """Keeps an upload piece by piece, each in its own transaction; returns its size in bytes."""
    n = total = 0
    while True:
        piece = _full(stream)
        if not piece:
            break
        with db.transaction() as tx:
            imports.add_piece(tx, run_id, n, piece)
        n += 1
        total += len(piece)
    with db.transaction() as tx:
        imports.uploaded(tx, run_id, total)
    return total


def _full(stream: Any) -> bytes:
    """A whole piece, however small the network's are; less at the end."""
    parts = []
    missing = imports.PIECE
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def work(
    db: Database, fingerprints: addresses.Fingerprints, stop: Event | None = None, run_id: str | None = None
) -> bool:
    """Takes one waiting run (or the one named) and imports it; returns whether there was one."""
    with db.transaction() as tx:
        imports.give_up_uploads(tx)
        run = imports.claim(tx, run_id)
        if run is not None and not tx.one(
            "SELECT 1 FROM import_chunk WHERE run_id = %s LIMIT 1", (run["id"],)
        ):
            if run["total_bytes"]:
                message = (
                    "The terminal that ran this import went away. Importing the same file again is safe."
                )
            else:
                message = "The file is empty."
            imports.end(tx, run, "failed", message)
            return True
    if run is None:
        return False
    Importer(db, run, lambda: imports.pieces(db, str(run["id"])), fingerprints).run(stop)
    return True
