"""Imports a file from the terminal, in this very process, with a progress bar."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from services.survey.commands import imports
from services.survey.edge import opt_out_fingerprints
from services.survey.importer import Importer, file_pieces
from services.survey.queries import imports as queries
from shared.db import Database, Row
from shared.settings import Settings


def run_import(
    settings: Settings, db: Database, path: Path, region: str | None, *, quiet: bool = False
) -> tuple[Row, list[Row]]:
    """Imports the file as a run of its own; returns the run and its first bad lines. Ctrl-C stops it."""
    size = path.stat().st_size
    with db.transaction() as tx:
        run_id = imports.begin(tx, path.name, _who(), region)
        run = imports.claim_new(tx, run_id, size)
    with path.open("rb") as file, _bar(quiet) as bar:
        task = bar.add_task("Importing", total=max(size, 1), rows=0, failed="")

        def watch(progress: Mapping[str, Any]) -> None:
            rows = bar.tasks[0].fields["rows"] + progress["rows"]
            failed = progress["failed"]
            said = bar.tasks[0].fields["failed"] or (", some bad" if failed else "")
            bar.update(task, completed=min(progress["bytes"], size), rows=rows, failed=said)

        importer = Importer(db, run, lambda: file_pieces(file), opt_out_fingerprints(settings), watch)
        try:
            importer.run()
        except BaseException:
            with db.transaction() as tx:
                imports.end(tx, run, "stopped", "Stopped at the terminal. What is in stays in.")
            raise
        bar.update(task, completed=max(size, 1))
    with db.transaction() as tx:
        return queries.get(tx, run_id), queries.errors(tx, run_id)[0]


def _bar(quiet: bool) -> Progress:
    console = Console(file=sys.stderr, quiet=quiet or not sys.stderr.isatty())
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[rows]:,} lines{task.fields[failed]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _who() -> str:
    try:
        return f"{getpass.getuser()} (terminal)"
    except (KeyError, OSError):
        return "terminal"
