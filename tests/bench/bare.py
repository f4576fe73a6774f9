"""The least that could take an answer: one Flask route on psycopg2, under the same server; and a static page.

It looks a token up by its hash, inserts the answer and its event, commits, and shows a page made with
Jinja. One connection per thread, no pool, no checks, no headers, no log lines, no locks, no versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import urllib3
from flask import Flask, render_template, request
from jinja2 import DictLoader

from shared.embedded.owner import find_owner
from shared.embedded.web import die_with_parent, server
from shared.web.pressure import AT_WORK
from tests.support.running import ROOT, free_port

_URL = "BENCH_DATABASE_URL"

_TABLES = """
CREATE TABLE token (hash bytea PRIMARY KEY, customer_id uuid NOT NULL, invitation_id uuid NOT NULL,
                    expires_at timestamptz NOT NULL);
CREATE TABLE answer (id uuid PRIMARY KEY, invitation_id uuid NOT NULL UNIQUE, customer_id uuid NOT NULL,
                     score smallint NOT NULL, comment text, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL,
                     key text NOT NULL, data text NOT NULL, at timestamptz NOT NULL DEFAULT now());
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title></head><body><main>
<p>{{ company }}</p><h1>You gave us a {{ score }}</h1><p>Saved. Thank you.</p>
<form method="post" action="{{ path }}">
<input type="hidden" name="nonce" value="{{ nonce }}"><input type="hidden" name="seen" value="1">
{% for n in range(11) %}
<button name="score" value="{{ n }}" aria-pressed="{{ 'true' if n == score else 'false' }}">{{ n }}</button>
{% endfor %}<label for="comment">What is the most important reason?</label>
<textarea id="comment" name="comment">{{ comment }}</textarea><button>Send</button></form></main>
</body></html>
"""

# As large as the answer page's styles and script.
_STATIC = _PAGE.split("{", 1)[0] + "<p>" + "x" * 12_000 + "</p></body></html>"


def create() -> Flask:
    """What each forked worker serves."""
    die_with_parent()
    app = Flask("bare")
    app.jinja_loader = DictLoader({"page.html": _PAGE})
    here = threading.local()

    def connection() -> psycopg2.extensions.connection:
        if not hasattr(here, "connection"):
            here.connection = psycopg2.connect(os.environ[_URL])
        found: psycopg2.extensions.connection = here.connection
        return found

    @app.post("/a/<token>")
    def answer(token: str) -> str:
        score, comment = int(request.form["pending"]), request.form.get("comment", "")
        with connection() as db, db.cursor() as cur:
            cur.execute(
                "SELECT customer_id, invitation_id FROM token WHERE hash = %s AND expires_at > now()",
                (hashlib.sha256(token.encode()).digest(),),
            )
            customer, invitation = cur.fetchone()  # type: ignore[misc]
            answer_id = str(uuid.uuid4())
            cur.execute(
                "INSERT INTO answer (id, invitation_id, customer_id, score, comment)"
                " VALUES (%s, %s, %s, %s, %s)",
                (answer_id, invitation, customer, score, comment),
            )
            said = {"id": answer_id, "invitation": invitation, "score": score, "comment": comment}
            cur.execute(
                "INSERT INTO outbox (topic, key, data) VALUES ('responses', %s, %s)",
                (customer, json.dumps(said)),
            )
        return render_template(
            "page.html",
            title="How likely are you to recommend us?",
            company="Example Ltd",
            score=score,
            comment=comment,
            path=request.path,
            nonce=secrets.token_urlsafe(16),
        )

    @app.get("/page")
    def page() -> str:
        return _STATIC

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    return app


class Bare:
    """The bare app, running on a database of its own."""

    def __init__(self, url: str, port: int) -> None:
        self.url = url
        self.port = port

    def tokens(self, count: int) -> list[str]:
        """Makes so many more links."""
        made = [secrets.token_urlsafe(16) for _ in range(count)]
        with contextlib.closing(psycopg2.connect(self.url)) as db:
            with db, db.cursor() as cur:
                psycopg2.extras.execute_values(
                    cur,
                    "INSERT INTO token VALUES %s",
                    [
                        (hashlib.sha256(token.encode()).digest(), str(uuid.uuid4()), str(uuid.uuid4()))
                        for token in made
                    ],
                    template="(%s, %s::uuid, %s::uuid, now() + interval '30 days')",
                    page_size=count,
                )
            db.autocommit = True
            with db.cursor() as cur:
                cur.execute("VACUUM ANALYZE")
        return made


@contextlib.contextmanager
def bare(url: str, home: Path) -> Iterator[Bare]:
    """Starts the bare app on the empty database `url`; ended at the end."""
    with contextlib.closing(psycopg2.connect(url)) as db:
        with db, db.cursor() as cur:
            cur.execute(_TABLES)
    port = free_port()
    owner = find_owner(home)
    with (home / "bare.out").open("wb") as output:
        process = subprocess.Popen(
            owner.command([sys.executable, "-m", "tests.bench.bare", str(port)]),
            cwd=ROOT, stdout=output, stderr=output, env={**os.environ, _URL: url, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"http://127.0.0.1:{port}/healthz", retries=False).status == 200:
                    break
            assert time.monotonic() < until and process.poll() is None, "the bare app does not start"
            time.sleep(0.05)
        yield Bare(url, port)
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    server("tests.bench.bare:create", "127.0.0.1", int(sys.argv[1]), AT_WORK).serve()
