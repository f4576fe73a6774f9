"""The whole product in containers, as `docker compose up` makes it, driven over HTTP through its proxy."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared.provider_settings import PREFIXES
from shared.settings import Settings
from shared.simulate.http import Client
from tests.support.history import Answers, Person
from tests.support.running import ROOT, TOKEN, Running, free_port

PATIENCE = 120.0
SCOPES = (
    "customers:read customers:write programs:read programs:write responses:read tasks:read tasks:write "
    "changes:read changes:write reports:read mailbox:read"
).split()
JOBS = {"secrets", "setup"}


@dataclass
class Compose:
    """One project of its own name, on a port of its own. `close` removes its containers and volumes."""

    project: str = field(default_factory=lambda: f"hearback-test-{secrets.token_hex(3)}")
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    files: tuple[str, ...] = ("docker-compose.yml",)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *words: str, said: str = "", check: bool = True) -> str:
        """Runs `docker compose WORDS…`, with `said` as its input; returns its output."""
        files = [word for file in self.files for word in ("-f", file)]
        done = subprocess.run(
            ["docker", "compose", "--env-file", os.devnull, "-p", self.project, *files, *words],
            cwd=ROOT, env=self._environment(), input=said, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"docker compose {' '.join(words)}:\n{done.stdout}\n{done.stderr}{self._ends()}"
            )
        return done.stdout

    def up(self, *words: str) -> None:
        """`docker compose up --wait`: returns when everything is healthy."""
        self.run("up", "--wait", "--quiet-pull", *words)

    def hearback(self, *words: str) -> str:
        """Runs a `hearback` command as the operator's page says; returns its output."""
        return self.run("run", "--rm", "--no-deps", "-T", "setup", *words)

    def state(self) -> dict[str, dict[str, Any]]:
        """Each container there is (ended ones too) as the engine tells it, by its name."""
        ids = self.run("ps", "-aq").split()
        told = json.loads(subprocess.run(["docker", "inspect", *ids], capture_output=True, check=True).stdout)
        return {one["Name"].removeprefix(f"/{self.project}-"): one for one in told}

    def logs(self, *services: str) -> str:
        return self.run("logs", "--no-color", "--no-log-prefix", *services)

    def close(self) -> None:
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)

    def _environment(self) -> dict[str, str]:
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith((*PREFIXES, "COMPOSE_"))
        }
        ports = {"HEARBACK_PORT": str(self.port), "HEARBACK_TLS_PORT": str(self.tls_port)}
        return {**mine, **ports, **self.env}

    def _ends(self) -> str:
        """What those that are not well said last."""
        ends = []
        for name, one in self.state().items():
            health = one["State"].get("Health", {})
            well = (
                one["State"]["ExitCode"] == 0
                if name.rsplit("-", 1)[0] in JOBS
                else (one["State"]["Status"] == "running" and health.get("Status") == "healthy")
            )
            if not well:
                checks = [check["Output"].strip() for check in health.get("Log", [])[-2:]]
                log = subprocess.run(
                    ["docker", "logs", "--tail", "15", one["Id"]], capture_output=True, text=True
                )
                ends.append(f"\n--- {name}: {one['State']['Status']} {checks}\n{log.stdout}{log.stderr}")
        return "".join(ends)

    def wait(self, done: Callable[[], Any], what: str) -> Any:
        """Returns what `done()` gives once it is true. Raises when it takes too long."""
        until = time.monotonic() + PATIENCE
        while not (found := done()):
            if time.monotonic() > until:
                raise AssertionError(f"waited {PATIENCE:.0f} s for {what}{self._ends()}")
            time.sleep(0.2)
        return found

    def client(self) -> Client:
        """A program with a key, made by an operator's command."""
        scopes = [word for scope in SCOPES for word in ("--scope", scope)]
        key = json.loads(self.hearback("apikey", "create", *scopes, "--json"))["key"]
        client = Client(self.url, {"Authorization": f"Bearer {key}"})
        self.wait(lambda: _accepted(client), "the key to be known by all services")
        return client

    def audit(self, answers: Answers) -> str:
        """Waits until everything has arrived, and runs the checker beside the services."""
        told = {"seed": answers.seed, "acks": [asdict(ack) for ack in answers.acks]}
        return self.run(
            "run", "--rm", "--no-deps", "-T", "-v", f"{ROOT / 'tests'}:/mnt/tests:ro",
            "-e", "PYTHONPATH=/mnt", "--entrypoint", "python", "setup", "-m", "tests.support.audit",
            said=json.dumps(told),
        )  # fmt: skip


def _accepted(client: Client) -> bool:
    paths = ("/survey/api/me", "/followup/api/me", "/reporting/api/me")
    asked = (client.pool.request("GET", client.base + path, headers=client.headers) for path in paths)
    return all(reply.status == 200 for reply in asked)


def available() -> bool:
    """Whether an engine answers, with its `compose`."""
    if shutil.which("docker") is None:
        return False
    looks = (["docker", "version"], ["docker", "compose", "version"])
    return all(subprocess.run(look, capture_output=True, check=False).returncode == 0 for look in looks)


@dataclass
class Asked:
    """Customers who were imported and asked over HTTP, and their answers."""

    compose: Compose
    client: Client
    answers: Answers

    @classmethod
    def on(cls, compose: Compose, client: Client) -> Asked:
        here = Settings(home=Path("/nowhere"), secret="nobody's" * 4, public_url=compose.url)
        return cls(compose, client, Answers(Running(here)))

    def invite(self, count: int) -> list[Person]:
        """Imports `count` more customers, asks them, and reads their mails; returns them with their links."""
        first = len(self.answers.people)
        people = [
            Person(f"person{number}@example.com", f"Firm {number // 3}" if number % 2 else None)
            for number in range(first, first + count)
        ]
        lines = [f"{one.email},{one.email.split('@')[0]},{one.account or ''}" for one in people]
        csv = "\n".join(["email,name,account", *lines])
        imported = self.client.upload("/survey/api/customers/import?wait=true", csv.encode(), "text/csv")
        assert imported["created"] == count, imported
        ids = {
            row["email"]: row["id"]
            for row in self.client.pages("/survey/api/customers?limit=100", "customers")
        }
        for one in people:
            one.id = ids[one.email]
        program = self.compose.wait(self.programs, "a program")
        asked = self.client.api(
            "POST",
            f"/survey/api/programs/{program[0]['id']}/ask",
            {"audience": {"customers": [one.id for one in people]}},
        )
        self.compose.wait(
            lambda: self.client.api("GET", f"/survey/api/asks/{asked['id']}")["state"] == "done", "the ask"
        )
        self.compose.wait(lambda: self._collect(people), "the messages")
        self.answers.people += people
        return people

    def programs(self) -> list[dict[str, Any]]:
        """The programs there are; survey's clock makes the first one."""
        found: list[dict[str, Any]] = self.client.api("GET", "/survey/api/programs")["programs"]
        return found

    def _collect(self, people: list[Person]) -> bool:
        found = {
            message["to"]: match[1]
            for message in self.client.messages()
            if message["direction"] == "out" and (match := TOKEN.search(message["text"]))
        }
        for one in people:
            one.token = found.get(one.email, "")
        return all(one.token for one in people)

    @contextmanager
    def answering(self, people: list[Person]) -> Iterator[None]:
        """While the block lasts, `people` answer and change their minds without a pause.

        At the end each has answered since the block ended.
        """
        over, failed = threading.Event(), list[BaseException]()

        def answer() -> None:
            try:
                while not over.is_set():
                    for one in people:
                        self.answers.answer(one)
                for one in people:
                    self.answers.answer(one)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failed:
            raise failed[0]


def one_time_password(said: str) -> str:
    """The first administrator's, out of what `setup` said."""
    found = re.search(r"one-time password +(\S+)", said)
    assert found, said
    return found[1]
