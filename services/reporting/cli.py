"""`hearback recount`: do the figures equal the raw answers?"""

from __future__ import annotations

import dataclasses
import json

import click

from services.reporting.queries.recount import recount
from shared.cli import show
from shared.cli.work import differ, disagreements
from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.settings import SERVICES, load


@click.command("recount")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recount_command(as_json: bool) -> int:
    """Count every figure again from the raw answers; exit code 1 when one differs.

    Where the other services' databases are known too, what reporting has heard is compared with what they
    have: answers, invitations, tasks. What is only under way is waited for.
    """
    settings = load(databases=["reporting"])
    db = Database(
        settings.database_urls["reporting"], SystemClock(), SystemIds(), name="recount", statement_timeout=0
    )
    try:
        with db.transaction() as tx:
            tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = recount(tx)
    finally:
        db.close()
    known = all(name in settings.database_urls for name in SERVICES)
    unheard = disagreements(settings, show.Steps(quiet=as_json), ["reporting"]) if known else []
    equal = found.equal and not unheard
    if as_json:
        body = dataclasses.asdict(found) | {"equal": equal, "others": [str(one) for one in unheard]}
        click.echo(json.dumps(body, default=str))
    elif equal:
        click.echo(
            f"{found.responses:,} answers and {found.invitations:,} invitations counted again: "
            f"every figure is the same{', and they are all that survey has' if known else ''}."
        )
    if not as_json and not found.equal:
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
    if not as_json and unheard:
        click.echo(differ(unheard), err=True)
    return 0 if equal else 1


commands: list[click.Command] = [recount_command]
