"""`docker compose up`: the loop goes round through the proxy, whatever is scaled, restarted or gone."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from dataclasses import replace
from urllib.parse import urlencode

import pytest
import urllib3

from shared.settings import SERVICES
from shared.simulate import mails
from shared.simulate.http import Client, parse
from tests.support.compose import JOBS, Asked, Compose, one_time_password

READY_SECONDS = 120.0
OURS = "survey-web survey-relay survey-consumer survey-sender survey-clock followup-web followup-relay "
OURS += "followup-consumer followup-sender followup-clock reporting-web reporting-consumer mailbox"


def test_up_is_healthy_in_two_minutes_and_says_how_to_log_in(compose: Compose) -> None:
    began = time.monotonic()
    compose.up()
    took = time.monotonic() - began
    assert took < READY_SECONDS, f"healthy after {took:.0f} s"
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(compose.url) as first:
        login = parse(first.url, first.read().decode()).form("password")
    given = {**login.hidden, "login": "admin", "password": one_time_password(compose.logs("setup"))}
    with browser.open(login.action, urlencode(given).encode()) as page:
        assert page.url == f"{compose.url}/followup/password"


def test_each_role_is_a_container_that_is_nobody_and_writes_nothing(compose: Compose) -> None:
    compose.up()
    state = compose.state()
    assert {name.rsplit("-", 1)[0] for name in state} == {*OURS.split(), *JOBS, "proxy", "postgres", "kafka"}
    for name in OURS.split():
        one = state[f"{name}-1"]
        assert one["Config"]["User"] == "10001:10001"
        assert one["HostConfig"]["ReadonlyRootfs"]
        assert one["HostConfig"]["CapDrop"] == ["ALL"]
        assert not one["NetworkSettings"]["Ports"].get("8080/tcp"), f"{name} is open to the host"
        assert one["RestartCount"] == 0, f"{name} died while something was late"
    image = subprocess.run(["docker", "inspect", "hearback"], capture_output=True, check=True).stdout
    assert json.loads(image)[0]["Size"] < 350e6


@pytest.mark.parametrize("service", SERVICES)
def test_each_login_enters_its_own_database_only(compose: Compose, service: str) -> None:
    look = (
        "import psycopg2, sys; url = open(f'/run/secrets/{sys.argv[1]}/database_url').read().strip();"
        "psycopg2.connect(url.rsplit('/', 1)[0] + '/' + sys.argv[2])"
    )
    enter = ("exec", "-T", f"{service}-web", "python", "-c", look, service)
    compose.run(*enter, service)
    for other in {*SERVICES, "log", "postgres"} - {service}:
        with pytest.raises(AssertionError, match="permission denied"):
            compose.run(*enter, other)
    folders = compose.run("exec", "-T", f"{service}-web", "find", "/run/secrets", "-type", "f").split()
    assert sorted(folders) == ["/run/secrets/common/secret", f"/run/secrets/{service}/database_url"]


def test_the_loop_goes_round_through_the_proxy(asked: Asked) -> None:
    compose, client = asked.compose, asked.client
    client.upload(
        "/survey/api/customers/import?wait=true",
        b"external id,email,name,account,account manager\n"
        b"C-1,ada@brightworks.example,Ada Abbott,Brightworks,mina@hearback.example\n",
        "text/csv",
    )
    compose.hearback("staff", "add", "mina@hearback.example", "--name", "Mina Meyer")
    program = compose.wait(asked.programs, "a program")[0]
    client.api("POST", f"/survey/api/programs/{program['id']}/ask", {"audience": {"customers": ["C-1"]}})

    ada = Client(compose.url, {})
    page = mails.click(ada, _mail(asked, "ada@brightworks.example", "?s=2"), 2)
    mails.say(ada, page, comment="Two days late again.")

    task = compose.wait(lambda: client.api("GET", "/followup/api/tasks?state=open")["tasks"], "a task")[0]
    assert task["owner"]["email"] == "mina@hearback.example"
    compose.wait(lambda: "Mina Meyer" in _text(page.url), "the trail to say who has it")
    where = f"/followup/api/tasks/{task['id']}"
    client.api("POST", f"{where}/attempts", {"channel": "phone", "reached": True}, once="attempt")
    theme = client.api("GET", "/followup/api/themes")["themes"][0]
    client.api("POST", f"{where}/resolve", {"theme_id": theme["id"], "outcome": "solved"}, once="resolve")

    change = {
        "title": "Saturday deliveries",
        "was_wrong": "Late.",
        "is_different": "We deliver on Saturdays.",
    }
    made = client.api("POST", "/followup/api/changes", {**change, "theme_ids": [theme["id"]]}, once="change")
    published = compose.wait(lambda: _published(client, made["id"]), "the audience of one")
    assert published["state"] == "published"
    notice = _mail(asked, "ada@brightworks.example", "helped=yes")
    compose.wait(lambda: "Saturday deliveries" in _text(page.url), "the trail to show the change")
    mails.tell_helped(ada, notice, True)

    stages = "asked delivered answered tasked in_time resolved told helped".split()
    compose.wait(lambda: [_count(client, stage) for stage in stages] == [1] * 8, "reporting to count it all")
    total = client.api("GET", "/reporting/api/nps")["total"]
    assert (total["n"], total["detractors"]) == (1, 1)


def test_given_a_name_the_proxy_speaks_tls(asked: Asked) -> None:
    compose = asked.compose
    named = replace(compose, env={"HEARBACK_NAME": "localhost"})
    try:
        named.up("--no-deps", "proxy")
        authority = "/data/caddy/pki/authorities/local/root.crt"
        compose.wait(
            lambda: compose.run("exec", "-T", "proxy", "ls", authority, check=False), "a certificate"
        )
        trusted = ssl.create_default_context(cadata=compose.run("exec", "-T", "proxy", "cat", authority))
        http = urllib3.PoolManager(ssl_context=trusted, retries=False)
        secure = f"https://localhost:{compose.tls_port}/survey/readyz"
        compose.wait(lambda: http.request("GET", secure).status == 200, "an answer over TLS")
        plain = http.request("GET", f"http://localhost:{compose.port}/survey/readyz", redirect=False)
        assert (plain.status, plain.headers["Location"]) == (308, "https://localhost/survey/readyz")
    finally:
        compose.up("--no-deps", "proxy")
    assert http.request("GET", f"{compose.url}/survey/readyz").status == 200


def test_roles_are_scaled_by_name_and_what_they_stand_on_may_restart(asked: Asked) -> None:
    people = asked.invite(12)
    with asked.answering(people):
        asked.compose.up("--no-recreate", "--scale", "survey-web=3", "--scale", "followup-consumer=2")
        names = asked.compose.state().keys()
        assert {"survey-web-3", "followup-consumer-2"} <= names
        # Killed: as a power cut would.
        asked.compose.run("restart", "--timeout", "0", "kafka")
        asked.compose.run("restart", "--timeout", "0", "postgres")
        asked.compose.run("kill", "survey-web")
        asked.compose.up("--no-recreate", "--scale", "survey-web=3", "--scale", "followup-consumer=2")
    assert "each once and in order" in asked.compose.audit(asked.answers)
    died = [name for name, one in asked.compose.state().items() if one["RestartCount"]]
    assert not died, f"{died} died because something else was away"


def test_down_and_up_lose_nothing(asked: Asked) -> None:
    asked.compose.run("down")
    asked.compose.up()
    assert "password" not in asked.compose.logs("setup")
    asked.answers.answer(asked.answers.people[0])
    assert "each once and in order" in asked.compose.audit(asked.answers)


def test_no_token_and_no_address_is_in_any_log(asked: Asked) -> None:
    page = f"{asked.compose.url}/followup/n/a-token-of-somebody"
    asked.compose.run("stop", "followup-web")
    away = asked.answers.http.request("GET", page)
    assert (away.status, away.headers["Retry-After"]) == (503, "5")
    assert "Reload this page" in away.data.decode()
    asked.compose.run("start", "followup-web")
    said = asked.compose.logs()
    assert "a-token-of-somebody" not in said
    assert "@example.com" not in said and "ada@" not in said
    assert not [one.token for one in asked.answers.people if one.token in said]


def test_one_of_three_brokers_may_be_gone(asked: Asked) -> None:
    compose = asked.compose
    compose.run("stop", "survey-relay", "followup-relay")
    compose.wait(lambda: _all_is_read(compose), "all to be read")
    compose.files = (*compose.files, "infra/three-brokers.yml")
    compose.up()
    for service in SERVICES:
        compose.hearback("rebuild", service)
    people = asked.invite(6)
    with asked.answering(people):
        compose.run("kill", "kafka-2")
        before = len(asked.answers.acks)
        compose.wait(lambda: len(asked.answers.acks) > before + 20, "answers without it")
    assert "each once and in order" in compose.audit(asked.answers)


def _mail(asked: Asked, address: str, with_link: str) -> str:
    """The HTML of the newest mail to `address` that has such a link."""

    def found() -> str:
        sent = [one["html"] for one in asked.client.messages() if one["to"] == address]
        return next((html for html in reversed(sent) if with_link in html), "")

    return str(asked.compose.wait(found, f"a mail to {address}"))


def _all_is_read(compose: Compose) -> bool:
    return not any(row["unread"] for row in json.loads(compose.hearback("log", "lag", "--json")))


def _text(url: str) -> str:
    return Client(url, {}).pool.request("GET", url).data.decode()


def _published(client: Client, change: str) -> dict[str, object]:
    reach = client.api("GET", f"/followup/api/changes/{change}/audience")
    if reach["reachable"] != 1:
        return {}
    where = f"/followup/api/changes/{change}/publish"
    found: dict[str, object] = client.api("POST", where, {"expected": 1}, once="tell")
    return found


def _count(client: Client, stage: str) -> int:
    stages = client.api("GET", "/reporting/api/funnel")["stages"]
    return next(int(one["count"]) for one in stages if one["stage"] == stage)
