"""Importing customers from a file: the upload, its progress, its report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, make_response, redirect, render_template, request

from services.survey import addresses, uploads
from services.survey.commands import imports
from services.survey.pages.forms import Wrong
from services.survey.queries import imports as queries
from shared.db import Row, Tx
from shared.errors import Invalid
from shared.web import PageArgs, actor, allow, body_limit, flash, service

bp = Blueprint("imports", __name__)


@bp.get("/survey/customers/import")
@allow("lead", "admin")
def import_page() -> Any:
    """The form, and earlier imports."""
    with service().db.transaction() as tx:
        return _form(tx, Wrong())


@bp.post("/survey/customers/import")
@allow("lead", "admin")
@body_limit(uploads.MAX_BYTES)
def upload() -> Any:
    """Takes the file; from then on the import runs by itself."""
    try:
        run_id = uploads.receive(request.form.get("region"), None, actor().name, form=True)
    except Invalid as error:
        with service().db.transaction() as tx:
            return make_response(_form(tx, Wrong(error.fields)), 422)
    after = "?first=1" if request.form.get("first") else ""
    return redirect(f"/survey/imports/{run_id}{after}", 303)


def _form(tx: Tx, wrong: Wrong) -> str:
    args = PageArgs().load(request.args.to_dict())
    runs, following = queries.latest(tx, args["cursor"])
    return render_template(
        "survey/import.html",
        runs=runs,
        wrong=wrong,
        regions=region_choices(),
        region=request.form.get("region", ""),
        next_url=f"/survey/customers/import?{urlencode({'cursor': following})}" if following else None,
    )


def region_choices() -> list[tuple[str, str]]:
    """Countries by their English names."""
    from babel import Locale  # loaded where used: locale data is heavy

    names = Locale("en").territories
    known = sorted(
        ((code, str(names.get(code, code))) for code in addresses.regions()), key=lambda pair: pair[1]
    )
    return [("", "Every number has its country code (+49 …)"), *known]


@bp.get("/survey/imports/<run_id>")
@allow("lead", "admin")
def run_page(run_id: str) -> Any:
    """How far the import is; afterwards what it did and which lines were bad."""
    args = PageArgs().load(request.args.to_dict())
    first = request.args.get("first") == "1"
    here = service()
    with here.db.transaction() as tx:
        run = queries.get(tx, run_id)
        errors, following = queries.errors(tx, run["id"], args["cursor"])
        now = tx.now
    kept = {"first": "1"} if first else {}
    return render_template(
        "survey/import_run.html",
        run=run,
        errors=errors,
        first=first,
        running=run["state"] in queries.OPEN,
        left=seconds_left(run, now),
        percent=percent(run),
        next_url=f"/survey/imports/{run_id}?{urlencode({**kept, 'cursor': following})}"
        if following
        else None,
        first_url=f"/survey/imports/{run_id}" if args["cursor"] else None,
    )


@bp.post("/survey/imports/<run_id>/stop")
@allow("lead", "admin")
def stop(run_id: str) -> Any:
    """Stops after the present batch."""
    with service().db.transaction() as tx:
        run = queries.get(tx, run_id)
        if run["state"] in queries.OPEN:
            imports.stop(tx, run["id"])
            flash("The import stops. What is in stays in.", "note")
    return redirect(f"/survey/imports/{run_id}", 303)


@bp.get("/survey/imports/<run_id>/errors.csv")
@allow("lead", "admin")
def errors_file(run_id: str) -> Response:
    """All bad lines as a file, to work through."""
    db = service().db
    with db.transaction() as tx:
        run = queries.get(tx, run_id)

    def lines() -> Iterator[str]:
        yield "\ufeffline,column,reason\r\n"
        cursor = None
        while True:
            with db.transaction() as tx:
                rows, cursor = queries.errors(tx, run["id"], cursor, 1_000)
            out = io.StringIO()
            csv.writer(out).writerows((row["line"], row["column_name"] or "", row["reason"]) for row in rows)
            yield out.getvalue()
            if cursor is None:
                return

    response = Response(lines(), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="import-{run_id}-errors.csv"'
    return response


def percent(run: Row) -> int | None:
    """How much of the file is read; None as long as its size is unknown."""
    if run["state"] == "done":
        return 100
    if not run["total_bytes"]:
        return None
    return int(min(99, 100 * run["done_bytes"] // run["total_bytes"]))


def seconds_left(run: Row, now: Any) -> int | None:
    """An estimate from the speed so far, or None when there is none to be made."""
    done, total = run["done_bytes"], run["total_bytes"]
    took = (now - run["started_at"]).total_seconds()
    if run["state"] != "running" or not done or not total or took < 2:
        return None
    return int(max(1, round(took * (total - done) / done)))
