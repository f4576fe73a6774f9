"""`hearback recount`: do the figures equal the raw answers?"""

from __future__ import annotations

import dataclasses
import json

import click

from services.reporting.queries.recount import recount
from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.settings import load


@click.command("recount")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recount_command(as_json: bool) -> int:
    """Count every figure again from the raw answers; exit code 1 when one differs."""
    url = load(databases=["reporting"]).database_urls["reporting"]
    db = Database(url, SystemClock(), SystemIds(), name="recount", statement_timeout=0)
    try:
        with db.transaction() as tx:
            tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = recount(tx)
    finally:
        db.close()
    if as_json:
        click.echo(json.dumps({"equal": found.equal, **dataclasses.asdict(found)}, default=str))
    elif found.equal:
        click.echo(
            f"{found.responses:,} answers and {found.invitations:,} invitations counted again: "
            "every figure is the same."
        )
    else:
        for difference in found.differences:
            click.echo(
                f"{difference.day} {difference.touchpoint} {difference.column}: "
                f"shown {difference.shown}, counted {difference.counted}"
            )
        click.echo(
            f"{len(found.differences)} figures differ, {found.stale_invitations} invitations have other "
            "stages than the facts give. Please report this; `hearback rebuild reporting` makes them right.",
            err=True,
        )
    return 0 if found.equal else 1


commands: list[click.Command] = [recount_command]
