"""Takes an uploaded customer file from a request, in pieces, however large it is."""

from __future__ import annotations

import psycopg2.errors
from flask import request

from services.survey import addresses, importer
from services.survey.commands import imports
from shared.errors import Invalid
from shared.web import service

MAX_BYTES = 200 << 20


def receive(
    region: str | None, file_name: str | None, by: str, run_id: str | None = None, *, form: bool = False
) -> str:
    """Keeps the body's file as a run that waits for a worker; returns the run's id.

    The file is the part `file` of a multipart body, else the body itself unless it is a page's `form`:
    common clients send files as they are under any content type.

    A `run_id` that is there already is that run: its upload is being repeated. Raises `Invalid` for an
    unknown country or a request without a file.
    """
    region = checked_region(region)
    if form or (request.mimetype or "").startswith("multipart/"):
        file = request.files.get("file")
        if file is None or not file.filename:
            raise Invalid("Choose a file first.", fields={"file": "Choose the CSV file with your customers."})
        stream, name = file.stream, file_name or file.filename
    else:
        stream, name = request.stream, file_name or "customers.csv"
    db = service().db
    try:
        with db.transaction() as tx:
            run_id = imports.begin(tx, name.replace("\\", "/").rsplit("/", 1)[-1], by, region, run_id)
    except psycopg2.errors.UniqueViolation:
        return str(run_id)
    importer.receive(db, run_id, stream)
    return run_id


def checked_region(region: str | None) -> str | None:
    """The country in capitals. Raises `Invalid` when there is none by that name."""
    if not region:
        return None
    if region.upper() not in addresses.regions():
        raise Invalid(
            "There is no such country.", fields={"region": "is not a country; two letters, like DE"}
        )
    return region.upper()
