"""Two versions of the program on one PostgreSQL: the one before this one, and a made-up next one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import urllib3

from shared.embedded.owner import find_owner
from shared.log import open_log
from shared.migrate import head
from shared.roles import read_report
from shared.settings import DATABASES, SERVICES, KafkaSettings, Settings
from tests.support.history import Asked
from tests.support.postgres import TestPostgres
from tests.support.running import ROOT, Running, free_port

_PARTS = ("shared", "services")

# A column that answers are known by gets another name: the old version must neither miss it nor write twice.
_EXPAND = """
ALTER TABLE response_version ADD COLUMN form_key text;
CREATE FUNCTION both_names() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.form_key = coalesce(NEW.form_key, NEW.nonce);
    NEW.nonce = coalesce(NEW.nonce, NEW.form_key);
    RETURN NEW;
END $$;
CREATE TRIGGER both_names BEFORE INSERT ON response_version FOR EACH ROW EXECUTE FUNCTION both_names();
UPDATE response_version SET form_key = nonce;
CREATE UNIQUE INDEX response_version_form_key ON response_version (response_id, form_key);
"""
_CONTRACT = """
DROP TRIGGER both_names ON response_version;
DROP FUNCTION both_names;
ALTER TABLE response_version ALTER COLUMN form_key SET NOT NULL, DROP COLUMN nonce;
"""
_MIGRATION = '''"""Made up."""

from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None
phase = "{phase}"


def upgrade() -> None:
    op.execute({sql!r})
'''


def previous(folder: Path) -> str | None:
    """Puts the newest earlier program that differs from this one into `folder`; returns its commit.

    `PREVIOUS=COMMIT` in the environment says where to look from. None where there is no history (a shallow
    clone, an archive).
    """
    found = _git("rev-list", "--max-count=50", os.environ.get("PREVIOUS", "HEAD"), "--", *_PARTS)
    for commit in found.stdout.split() if found.returncode == 0 else []:
        if _git("diff", "--quiet", commit, "--", *_PARTS).returncode == 1:
            archive = subprocess.run(
                ["git", "archive", commit, *_PARTS], cwd=ROOT, capture_output=True, check=False
            )
            if archive.returncode == 0:
                subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
                folder.chmod(0o755)
                return commit
    return None


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def copy(folder: Path) -> None:
    """Puts this program into `folder`."""
    for part in _PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    folder.chmod(0o755)


def following(folder: Path) -> tuple[str, str]:
    """Puts a made-up next version into `folder`; returns the revisions of its expansion and contraction."""
    copy(folder)
    before = head("survey")
    expand, contract = f"{int(before) + 1:04}", f"{int(before) + 2:04}"
    versions = folder / "services/survey/migrations/versions"
    for revision, after, phase, sql in (
        (expand, before, "expand", _EXPAND),
        (contract, expand, "contract", _CONTRACT),
    ):
        text = _MIGRATION.format(revision=revision, before=after, phase=phase, sql=sql)
        (versions / f"{revision}_made_up.py").write_text(text)
    program = folder / "services/survey/commands/answers.py"
    text = program.read_text()
    changed = text.replace("v.nonce =", "v.form_key =").replace("source, nonce)", "source, form_key)")
    assert changed.count("form_key") == 2, "the statement that records answers has changed: change this, too"
    program.write_text(changed)
    return expand, contract


def databases(postgres: TestPostgres) -> dict[str, str]:
    """Empty databases, to be migrated by whichever version."""
    return {name: postgres.empty(name) for name in DATABASES}


@contextlib.contextmanager
def version(
    root: Path, urls: Mapping[str, str], secret: str, kafka: KafkaSettings | None = None
) -> Iterator[Running]:
    """The program in `root` on these databases (and `kafka`), on a port of its own; nothing runs yet."""
    home = Path(tempfile.mkdtemp(prefix="hearback-version-"))
    (home / "run").mkdir()
    find_owner().own(home, deep=True)
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    log: Literal["kafka", "embedded"] = "kafka" if kafka else "embedded"
    settings = Settings(home=home, secret=secret, database_urls=dict(urls), log=log, kafka=kafka)
    settings = replace(settings, port=port, public_url=here, survey_url=here, mailbox_url=here)
    running = Running(settings, root=root)
    try:
        if kafka:
            open_log(settings).ensure_topics()
        yield running
    finally:
        running.close()
        shutil.rmtree(home, ignore_errors=True)


def readyz(running: Running, service: str) -> tuple[int, dict[str, Any]]:
    """What a web says of itself; (0, {}) when it does not answer."""
    try:
        reply = urllib3.request("GET", f"{running.url}/{service}/readyz", retries=False, timeout=10)
    except urllib3.exceptions.HTTPError:
        return 0, {}
    return reply.status, json.loads(reply.data)


def ready(running: Running) -> bool:
    """Whether webs and workers of all services can work."""
    reports = [read_report(running.settings.home, service) for service in SERVICES]
    return all(report and report["ready"] for report in reports) and all(
        readyz(running, service)[0] == 200 for service in SERVICES
    )


class Traffic:
    """Customers who answer all the time, each attempt to the next of `urls`, until they are told to stop."""

    def __init__(self, asked: Asked, urls: list[str]) -> None:
        self.asked = asked
        self.urls = urls
        self.errors: list[BaseException] = []
        self._turn = itertools.count()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        asked.where = self._next

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert not self.errors, self.errors

    def go_on(self, count: int = 12) -> None:
        """Returns when so many more answers were acknowledged."""
        wanted = len(self.asked.acks) + count
        self.asked.running.wait(
            lambda: len(self.asked.acks) >= wanted or self.errors, None, "answers to be acknowledged"
        )
        assert not self.errors, self.errors

    def _next(self) -> str:
        return self.urls[next(self._turn) % len(self.urls)]

    def _run(self) -> None:
        try:
            for person in itertools.cycle(self.asked.people):
                if self._over.is_set():
                    return
                self.asked.answer(person)
        except BaseException as error:
            self.errors.append(error)
