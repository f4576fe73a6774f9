"""The life of an import run: uploaded in pieces, claimed by one worker, committed batch by batch, ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from psycopg2.extras import Json

from shared.db import Database, Row, Tx
from shared.errors import Conflict, NotFound

PIECE = 1 << 18
# A worker renews its claim with each batch; a claim older than this is a worker that died.
CLAIM_LASTS = timedelta(seconds=60)
UPLOAD_LASTS = timedelta(minutes=30)


@dataclass
class Progress:
    """What a batch adds to its run."""

    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    done_line: int = 0
    done_bytes: int = 0
    errors: list[tuple[int, str | None, str]] = field(default_factory=list)


class ClaimLost(Exception):
    """Another worker has taken the run over: this one must not go on."""


def begin(tx: Tx, file_name: str, by: str, region: str | None, run_id: str | None = None) -> str:
    """A new run whose file is still to come; returns its id."""
    run_id = run_id or tx.ids.new()
    tx.execute(
        "INSERT INTO import_run (id, file_name, state, by, region, started_at, claimed_at)"
        " VALUES (%s, %s, 'uploading', %s, %s, %s, %s)",
        (run_id, file_name[:200] or "customers.csv", by, region, tx.now, tx.now),
    )
    return run_id


def add_piece(tx: Tx, run_id: str, n: int, piece: bytes) -> None:
    """Keeps one piece of the uploaded file."""
    tx.execute("INSERT INTO import_chunk (run_id, n, bytes) VALUES (%s, %s, %s)", (run_id, n, piece))
    tx.execute("UPDATE import_run SET claimed_at = %s WHERE id = %s", (tx.now, run_id))


def uploaded(tx: Tx, run_id: str, total_bytes: int) -> None:
    """The whole file is here: a worker may take the run."""
    tx.execute(
        "UPDATE import_run SET state = 'waiting', total_bytes = %s WHERE id = %s AND state = 'uploading'",
        (total_bytes, run_id),
    )


def pieces(db: Database, run_id: str) -> Iterator[bytes]:
    """The pieces of an uploaded file in their order, each read when it is needed."""
    n = 0
    while True:
        with db.transaction() as tx:
            piece = tx.value("SELECT bytes FROM import_chunk WHERE run_id = %s AND n = %s", (run_id, n))
        if piece is None:
            return
        yield bytes(piece)
        n += 1


def claim(tx: Tx, run_id: str | None = None) -> Row | None:
    """Takes a run that waits, or one whose worker died; None when there is none.

    `run_id` names the only one wanted.
    """
    return tx.one(
        "UPDATE import_run SET state = 'running', claim = %(claim)s, claimed_at = %(now)s WHERE id = ("
        "  SELECT id FROM import_run"
        "  WHERE (state = 'waiting' OR (state = 'running' AND claimed_at < %(dead)s))"
        "   AND (%(run)s::uuid IS NULL OR id = %(run)s::uuid)"
        "  ORDER BY started_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING *",
        {"claim": tx.ids.new(), "now": tx.now, "dead": tx.now - CLAIM_LASTS, "run": run_id},
    )


def claim_new(tx: Tx, run_id: str, total_bytes: int) -> Row:
    """Takes a run whose file its caller reads itself."""
    row = tx.one(
        "UPDATE import_run SET state = 'running', claim = %s, claimed_at = %s, total_bytes = %s"
        " WHERE id = %s RETURNING *",
        (tx.ids.new(), tx.now, total_bytes, run_id),
    )
    if row is None:
        raise NotFound("There is no such import.")
    return row


def found_out(tx: Tx, run: Mapping[str, Any], encoding: str, delimiter: str) -> None:
    """Notes how the file is written."""
    tx.execute(
        "UPDATE import_run SET encoding = %s, delimiter = %s WHERE id = %s AND claim = %s",
        (encoding, delimiter, run["id"], run["claim"]),
    )


def unknown_managers(tx: Tx, emails: Sequence[str]) -> list[str]:
    """Which of these account managers have no login."""
    if not emails:
        return []
    rows = tx.all(
        "SELECT m.email FROM unnest(%s::text[]) AS m (email)"
        " WHERE NOT EXISTS (SELECT 1 FROM staff s WHERE s.email = m.email AND NOT s.disabled) ORDER BY 1",
        (list(emails),),
    )
    return [row["email"] for row in rows]


def advance(tx: Tx, run: Mapping[str, Any], progress: Progress, managers: Sequence[str]) -> bool:
    """Books a batch in the transaction that applied it; returns whether somebody wants the run to stop.

    Raises `ClaimLost` when the run is not this worker's any more: then the batch must not count.
    """
    row = tx.one(
        "UPDATE import_run SET rows = rows + %s, created = created + %s, updated = updated + %s,"
        " unchanged = unchanged + %s, failed = failed + %s, done_line = %s, done_bytes = %s,"
        " unknown_managers = %s, claimed_at = %s"
        " WHERE id = %s AND claim = %s AND state = 'running' RETURNING stop_requested",
        (
            progress.rows,
            progress.created,
            progress.updated,
            progress.unchanged,
            progress.failed,
            progress.done_line,
            progress.done_bytes,
            Json(list(managers)),
            tx.now,
            run["id"],
            run["claim"],
        ),
    )
    if row is None:
        raise ClaimLost
    tx.values(
        "INSERT INTO import_error (run_id, line, column_name, reason) VALUES %s",
        [(run["id"], line, column, reason) for line, column, reason in progress.errors],
    )
    return bool(row["stop_requested"])


def end(tx: Tx, run: Mapping[str, Any], state: str, message: str | None = None) -> None:
    """Ends a run ('done', 'stopped', 'failed') and forgets its file."""
    ended = tx.execute(
        "UPDATE import_run SET state = %s, message = %s, ended_at = %s, claim = NULL,"
        " done_bytes = CASE WHEN %s THEN coalesce(total_bytes, done_bytes) ELSE done_bytes END"
        " WHERE id = %s AND claim = %s AND state = 'running'",
        (state, message, tx.now, state == "done", run["id"], run["claim"]),
    )
    if ended:
        tx.execute("DELETE FROM import_chunk WHERE run_id = %s", (run["id"],))


def release(tx: Tx, run: Mapping[str, Any]) -> None:
    """Gives a claimed run back, for the next worker to go on with."""
    tx.execute(
        "UPDATE import_run SET state = 'waiting', claim = NULL"
        " WHERE id = %s AND claim = %s AND state = 'running'",
        (run["id"], run["claim"]),
    )


def stop(tx: Tx, run_id: str) -> None:
    """Asks a run to stop after its present batch; what is in stays in. Raises `NotFound`, `Conflict`."""
    row = tx.one("SELECT state FROM import_run WHERE id = %s FOR UPDATE", (run_id,))
    if row is None:
        raise NotFound("There is no such import.")
    if row["state"] in ("waiting", "uploading"):
        tx.execute(
            "UPDATE import_run SET state = 'stopped', stop_requested = true, ended_at = %s WHERE id = %s",
            (tx.now, run_id),
        )
        tx.execute("DELETE FROM import_chunk WHERE run_id = %s", (run_id,))
    elif row["state"] == "running":
        tx.execute("UPDATE import_run SET stop_requested = true WHERE id = %s", (run_id,))
    else:
        raise Conflict("This import has ended already.")


def give_up_uploads(tx: Tx) -> int:
    """Ends runs whose upload broke off; returns how many."""
    rows = tx.all(
        "UPDATE import_run SET state = 'failed', ended_at = %s,"
        " message = 'The upload broke off. Nothing was imported; please upload the file again.'"
        " WHERE state = 'uploading' AND claimed_at < %s RETURNING id",
        (tx.now, tx.now - UPLOAD_LASTS),
    )
    if rows:
        tx.execute("DELETE FROM import_chunk WHERE run_id = ANY(%s::uuid[])", ([row["id"] for row in rows],))
    return len(rows)
