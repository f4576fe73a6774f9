"""Runs the measurements one after the other and shows one table; see docs/performance.md."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from shared import telemetry
from tests.bench import answers, consumers, importing, loop, machine, relay, roles, sending
from tests.bench.ground import Ground
from tests.bench.table import Row, Table, calibration

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
_BEGIN, _END = "<!-- what `make bench ARGS=--write` says -->", "<!-- end of it -->"

Measure = Callable[[Ground, int], list[Row]]

MEASUREMENTS: Mapping[str, Measure] = {
    "answers": answers.beside_bare,
    "disk": answers.slow_disk,
    "page": answers.page,
    "relay": relay.to_each_log,
    "consumers": consumers.of_each_log,
    "sendgrid": sending.over_tls,
    "loop": loop.sustained,
    "import": importing.customers,
    "roles": roles.per_thousand,
    "machine": machine.starts_and_memory,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--repeats", default=3, show_default=True, help="How often each side is measured, in turns.")
@click.option("--write", is_flag=True, help="Renew the table in docs/performance.md.")
def main(names: tuple[str, ...], repeats: int, write: bool) -> None:
    """Measures all, or NAMES. Exits with 1 when an acknowledged answer is missing or there twice."""
    telemetry.set_up("bench", level=logging.WARNING)  # standard output is the table's
    table = Table()
    began = time.monotonic()
    before = calibration()
    ground = Ground()
    try:
        for name in names or MEASUREMENTS:
            at = time.monotonic()
            rows = MEASUREMENTS[name](ground, repeats)
            table.rows += rows
            for row in rows:
                click.echo("  ".join(cell for cell in row.cells() if cell), err=True)
            click.echo(f"· {name} took {time.monotonic() - at:.0f} s", err=True)
    finally:
        ground.close()
    said = report(table, before, calibration(), repeats, time.monotonic() - began)
    click.echo(said)
    if write:
        renew(said)
    sys.exit(any(row.wrong for row in table.rows))


def renew(said: str) -> None:
    """Puts the run's words between the marks in docs/performance.md."""
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    DOCUMENT.write_text(f"{before}{_BEGIN}\n\n{said}\n\n{_END}{after}")


def report(table: Table, before: float, after: float, repeats: int, took: float) -> str:
    """All that a run has to say, as Markdown."""
    missed = [f"- {row.name}: {row.missed}" for row in table.rows if row.missed]
    parts = [
        table.markdown(),
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {repeats} repeats, medians,"
        f" {took / 60:.1f} minutes. The fixed piece of plain Python took {before:.2f} s before and"
        f" {after:.2f} s after.",
        table.notes(),
        "Missed:\n\n" + "\n".join(missed) if missed else "Every goal is met.",
    ]
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    main()
