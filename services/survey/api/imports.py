"""API of imports: send a CSV file, watch its run, read its bad lines, stop it."""

from __future__ import annotations

import time
import uuid
from typing import Any

from flask import request
from flask_smorest import Blueprint

from services.survey import importer, schemas, uploads
from services.survey.commands import imports
from services.survey.edge import opt_out_fingerprints
from services.survey.queries import imports as queries
from shared.web import PageArgs, actor, allow, body_limit, service

bp = Blueprint("imports-api", __name__, description="Imports of customers.")

# Small enough to import within a request that waits.
AT_ONCE = 2 << 20
WAIT_SECONDS = 20.0


@bp.post("/survey/api/customers/import")
@allow("lead", "admin", scope="customers:write")
@body_limit(uploads.MAX_BYTES)
@bp.arguments(schemas.ImportQuery, location="query")
@bp.response(202, schemas.ImportRun)
@bp.alt_response(200, schema=schemas.ImportRun, description="With `wait`: the report.")
@bp.alt_response(413, description="The file is too large.")
def import_customers(args: dict[str, Any]) -> Any:
    """Imports a CSV file: the body itself, or the part `file` of a form.

    The first line names the columns. Good lines are kept, bad ones reported with line, column and
    reason; the same file again changes nothing. Answers 202 with the run and its `Location`. With an
    `Idempotency-Key` a repeated upload finds its first run.
    """
    here, who = service(), actor()
    key = request.headers.get("Idempotency-Key")
    run_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"import|{who.kind}|{who.id}|{key}")) if key else None
    run_id = uploads.receive(args["region"], args["file_name"], who.name, run_id)
    if args["wait"]:
        with here.db.transaction() as tx:
            size = queries.get(tx, run_id)["total_bytes"] or 0
        if size <= AT_ONCE:
            importer.work(here.db, opt_out_fingerprints(), run_id=run_id)
        _wait(run_id)
    run = _report(run_id)
    done = args["wait"] and run["state"] not in queries.OPEN
    return run, 200 if done else 202, {"Location": f"/survey/api/imports/{run_id}"}


@bp.get("/survey/api/imports")
@allow("lead", "admin", scope="customers:read")
@bp.arguments(PageArgs, location="query")
@bp.response(200, schemas.ImportPage)
def imports_list(args: dict[str, Any]) -> Any:
    """Imports, newest first."""
    with service().db.transaction() as tx:
        rows, following = queries.latest(tx, args["cursor"], args["limit"])
    return {"imports": rows, "next": following}


@bp.get("/survey/api/imports/<run_id>")
@allow("lead", "admin", scope="customers:read")
@bp.response(200, schemas.ImportRun)
def imports_get(run_id: str) -> Any:
    """One import: state, counts, the first bad lines."""
    return _report(run_id)


@bp.get("/survey/api/imports/<run_id>/errors")
@allow("lead", "admin", scope="customers:read")
@bp.arguments(PageArgs, location="query")
@bp.response(200, schemas.ImportErrorPage)
def imports_errors(args: dict[str, Any], run_id: str) -> Any:
    """The lines that were not taken."""
    with service().db.transaction() as tx:
        rows, following = queries.errors(tx, queries.get(tx, run_id)["id"], args["cursor"], args["limit"])
    return {"errors": rows, "next": following}


@bp.post("/survey/api/imports/<run_id>/stop")
@allow("lead", "admin", scope="customers:write")
@bp.response(202, schemas.ImportRun)
def imports_stop(run_id: str) -> Any:
    """Stops an import after its present batch; what is in stays in."""
    with service().db.transaction() as tx:
        imports.stop(tx, queries.get(tx, run_id)["id"])
    return _report(run_id)


def _report(run_id: str) -> Any:
    with service().db.transaction() as tx:
        run = queries.get(tx, run_id)
        rows, _ = queries.errors(tx, run["id"])
    return {**run, "errors": rows}


def _wait(run_id: str) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        with service().db.transaction() as tx:
            if queries.get(tx, run_id)["state"] not in queries.OPEN:
                return
        time.sleep(0.1)
