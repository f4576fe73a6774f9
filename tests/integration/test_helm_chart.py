"""The Helm chart: every role a deployment of its own, scaled alone, reaching only what it needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import psycopg2
import pytest
import urllib3
import yaml

from shared.cli.work import migrate
from shared.embedded.app import PREFIXES
from shared.embedded.owner import find_owner
from shared.events.catalog import TOPICS
from shared.events.outbox import SHARDS
from shared.roles import load_roles
from shared.settings import SERVICES, load
from tests.support.helm import (
    CHART,
    LEAST,
    ROOT,
    Object,
    Rendered,
    container,
    environment,
    merged,
    render,
    routes,
    schemas,
    template,
    tool,
)
from tests.support.postgres import FreshDatabases
from tests.support.running import free_port

ROLES = {(service, role) for service in SERVICES for role in ("web", *load_roles(service))}
REAL = {
    "mail": {"provider": "sendgrid"},
    "sms": {"provider": "twilio", "twilio": {"from": "+14155550100"}},
}
SASL = {
    "security": "sasl_ssl",
    "saslSecret": {"name": "kafka-login"},
    "caSecret": {"name": "kafka-ca"},
    "clientSecret": {"name": "kafka-client"},
    "prefix": "acme.",
}
FULL = {
    **REAL,
    "kafka": {**SASL, "peers": [{"podSelector": {"matchLabels": {"app": "kafka"}}}]},
    "secret": {"previousKey": "previous"},
    "ingress": {"className": "public", "tlsSecret": "feedback-tls", "annotations": {"a.example/b": "c"}},
    "image": {"tag": "1.2.3", "pullSecrets": ["registry"]},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "priorityClassName": "high",
    "networkPolicy": {
        "dnsPeers": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
        "ingressPeers": [{"namespaceSelector": {"matchLabels": {"role": "ingress"}}}],
        "providerPeers": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
        "monitoringPeers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    },
    "databases": {
        name: {"secret": {"migrationKey": "direct-url"}, "peers": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}
        for name in ("survey", "followup", "reporting", "log")
    },
}
SMTP = {"mail": {"provider": "smtp", "smtp": {"host": "mail.example.com", "secret": {"name": "smtp"}}}}
VARIANTS: dict[str, dict[str, Any]] = {
    "least": {},
    "real": REAL,
    "full": FULL,
    "smtp": SMTP,
    "no keda": {"keda": {"enabled": False}},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(**VARIANTS[request.param])


@pytest.fixture(scope="module")
def full() -> Rendered:
    return render(**FULL)


def test_helm_finds_nothing_to_complain_about() -> None:
    done = tool("helm", "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "[ERROR]" not in done.stdout and "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", ["1.27", "1.32", "1.37"])
def test_kubernetes_takes_every_object(rendered: Rendered, version: str, tmp_path: Path) -> None:
    done = tool(
        "kubeconform", "-strict", "-output", "json", "-summary",
        "-skip", "ScaledObject,TriggerAuthentication",  # not Kubernetes' own: looked at below
        "-schema-location", schemas(version, tmp_path),
        given=rendered.text,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert done.returncode == 0, said
    skipped = sum(one["kind"] in ("ScaledObject", "TriggerAuthentication") for one in rendered.objects)
    assert said["summary"]["valid"] == len(rendered.objects) - skipped > 40, said


def test_kubernetes_schemas_are_not_indifferent(full: Rendered, tmp_path: Path) -> None:
    wrong = full.text.replace("maxUnavailable: 1", "maxUnavailabel: 1", 1)
    assert wrong != full.text
    done = tool("kubeconform", "-strict", "-skip", "ScaledObject,TriggerAuthentication",
                "-schema-location", schemas("1.37", tmp_path), given=wrong)  # fmt: skip
    assert done.returncode == 1 and "maxUnavailabel" in done.stdout


def test_each_role_of_each_service_is_a_deployment(rendered: Rendered) -> None:
    found = rendered.deployments()
    assert all(container(one)["args"][0] == "run" for one in found.values())
    with_mailbox = {("mailbox", "web")} if "-mailbox-web:8080" in rendered.text else set()
    assert set(found) == ROLES | with_mailbox


def test_the_mailbox_runs_only_where_it_stands_in_for_a_provider() -> None:
    assert ("mailbox", "web") in render().deployments()
    assert ("mailbox", "web") not in render(**REAL).deployments()
    assert "mailbox" not in render(**REAL).text


def test_every_selector_finds_its_own_pods_and_no_others(rendered: Rendered) -> None:
    pods = {
        name: one["spec"]["template"]["metadata"]["labels"]
        for name, one in rendered.kind("Deployment").items()
    }
    for kind in ("Deployment", "PodDisruptionBudget", "Service", "NetworkPolicy"):
        for name, one in rendered.kind(kind).items():
            spec = one["spec"]
            chosen = spec["podSelector"] if kind == "NetworkPolicy" else spec["selector"]
            labels = chosen.get("matchLabels", chosen)
            found = [pod for pod, has in pods.items() if labels.items() <= has.items()]
            assert found == ([] if name.endswith("-migrate") else [name]), (kind, name)


def test_no_object_holds_a_secret(rendered: Rendered) -> None:
    assert not rendered.kind("Secret") and not rendered.kind("ConfigMap")
    referred = 0
    for pod in rendered.pods():
        for one in pod["spec"]["containers"][0]["env"]:
            secret = (
                one["name"].endswith(
                    (
                        "_SECRET",
                        "_DATABASE_URL",
                        "_PASSWORD",
                        "_TOKEN",
                        "_KEY",
                        "_SID",
                        "_USER",
                        "_CA",
                        "_CERTIFICATE",
                    )
                )
                and one["name"] != "TWILIO_MESSAGING_SERVICE_SID"
            )
            assert ("valueFrom" in one) == secret, one
            referred += secret
    assert referred > 2 * len(ROLES)


def test_a_role_knows_only_its_own_database(rendered: Rendered) -> None:
    for (service, _), one in rendered.deployments().items():
        urls = {env["name"] for env in container(one)["env"] if env["name"].endswith("_DATABASE_URL")}
        assert urls == {f"HEARBACK_{'LOG' if service == 'mailbox' else service.upper()}_DATABASE_URL"}


def test_only_who_hands_messages_over_or_hears_of_them_knows_the_providers(full: Rendered) -> None:
    knowing = {
        role for role, one in full.deployments().items()
        if any(env["name"] in ("SENDGRID_API_KEY", "TWILIO_AUTH_TOKEN") for env in container(one)["env"])
    }  # fmt: skip
    assert knowing == {("survey", "sender"), ("followup", "sender"), ("survey", "web")}


def test_pods_may_do_nothing_but_their_work(rendered: Rendered) -> None:
    for pod in rendered.pods():
        spec, inner = pod["spec"], pod["spec"]["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert inner["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert inner["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
        assert [list(volume) for volume in spec["volumes"]] == [["name", "emptyDir"]]
        home = next(env["value"] for env in inner["env"] if env["name"] == "HEARBACK_HOME")
        assert home.startswith("/tmp/")
        assert {"cpu", "memory"} <= inner["resources"]["requests"].keys()


def test_a_neighbours_trouble_restarts_nothing_and_takes_unready_pods_out(rendered: Rendered) -> None:
    for (service, role), one in rendered.deployments().items():
        inner = container(one)
        ports = {port["name"]: port["containerPort"] for port in inner["ports"]}
        assert ports == {"health": 8081} | ({"http": 8080} if role == "web" else {})
        for probe in ("livenessProbe", "startupProbe"):
            assert inner[probe]["httpGet"] == {"path": f"/{service}/healthz", "port": "health"}
        ready = inner["readinessProbe"]
        if service == "mailbox":
            assert ready["tcpSocket"] == {"port": "http"}
        else:
            port = "http" if role == "web" else "health"
            assert ready["httpGet"] == {"path": f"/{service}/readyz", "port": port}


def test_every_role_has_a_disruption_budget_that_lets_nodes_be_drained(rendered: Rendered) -> None:
    budgets = rendered.kind("PodDisruptionBudget")
    assert set(budgets) == set(rendered.kind("Deployment"))
    for one in budgets.values():
        assert one["spec"]["maxUnavailable"] == 1 and "minAvailable" not in one["spec"]


def scalers(rendered: Rendered) -> dict[str, Object]:
    """What scales a deployment, by its name."""
    found: dict[str, Object] = {}
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for one in rendered.kind(kind).values():
            target = one["spec"]["scaleTargetRef"]["name"]
            assert target not in found, f"two scale {target}"
            found[target] = one
    return found


def test_each_role_is_scaled_alone_and_by_what_waits_for_it(full: Rendered) -> None:
    by_target = scalers(full)
    assert set(by_target) <= set(full.kind("Deployment"))
    for (_, role), one in full.deployments().items():
        scaler = by_target.get(one["metadata"]["name"])
        # Who is scaled says no number: each upgrade would set it back.
        assert ("replicas" in one["spec"]) == (scaler is None)
        if role == "clock":
            assert scaler is None and one["spec"]["replicas"] == 1
        elif role == "web":
            assert scaler and scaler["kind"] == "HorizontalPodAutoscaler"
            [metric] = scaler["spec"]["metrics"]
            assert metric["resource"]["name"] == "cpu"
        else:
            assert scaler and scaler["kind"] == "ScaledObject"
            kinds = {trigger["type"] for trigger in scaler["spec"]["triggers"]}
            assert kinds == {"kafka" if role == "consumer" else "postgresql"}


def test_without_keda_every_role_has_its_least_number(rendered: Rendered) -> None:
    bare = render(keda={"enabled": False})
    assert "keda.sh" not in bare.text
    for (_, role), one in bare.deployments().items():
        assert one["spec"].get("replicas", 0) == (0 if (_, role) in ROLES and role == "web" else 1)


def test_there_are_no_more_consumers_than_partitions_nor_relays_than_shards(full: Rendered) -> None:
    by_target = scalers(full)
    for (service, role), one in full.deployments().items():
        if role == "consumer":
            spec = by_target[one["metadata"]["name"]]["spec"]
            handlers = import_module(f"services.{service}.handlers")
            metadata = [trigger["metadata"] for trigger in spec["triggers"]]
            assert [each["topic"] for each in metadata] == [f"acme.{topic}" for topic in handlers.TOPICS]
            assert {each["consumerGroup"] for each in metadata} == {f"acme.{handlers.GROUP}"}
            assert {each["allowIdleConsumers"] for each in metadata} == {"false"}
            assert spec["maxReplicaCount"] == max(TOPICS[topic].partitions for topic in handlers.TOPICS)
        if role == "relay":
            assert by_target[one["metadata"]["name"]]["spec"]["maxReplicaCount"] == SHARDS


@pytest.mark.parametrize("role", ["consumer", "relay"])
def test_more_of_them_than_can_work_are_refused(role: str) -> None:
    most = max(topic.partitions for topic in TOPICS.values()) if role == "consumer" else SHARDS
    values = {"roles": {"followup": {role: {"max": most + 1}}}}
    done = template(merged(LEAST, values))
    assert done.returncode != 0 and f"/roles/followup/{role}/max" in done.stderr


def test_what_scaling_asks_the_databases_can_be_asked(full: Rendered, database_urls: FreshDatabases) -> None:
    asked = 0
    for one in full.kind("ScaledObject").values():
        for trigger in one["spec"]["triggers"]:
            if trigger["type"] != "postgresql":
                continue
            service = (
                trigger["authenticationRef"]["name"].removeprefix("loop-hearback-").removesuffix("-database")
            )
            assert f"-{service}-" in one["metadata"]["name"]
            connection = psycopg2.connect(database_urls[service])
            try:
                with connection.cursor() as cur:
                    cur.execute(trigger["metadata"]["query"])
                    assert cur.fetchall() == [(0,)]
            finally:
                connection.close()
            asked += 1
    assert asked == 4


# KEDA's own definitions come with no package that could be had; so by hand, from its documentation (2.12 on).
SCALED = {"scaleTargetRef", "pollingInterval", "minReplicaCount", "maxReplicaCount", "advanced", "triggers"}
KAFKA = {"bootstrapServers", "consumerGroup", "topic", "lagThreshold", "offsetResetPolicy",
         "allowIdleConsumers", "sasl", "tls"}  # fmt: skip
PARAMETERS = {"connection", "username", "password", "ca", "cert", "key"}


@pytest.mark.parametrize("variant", ["least", "full"])
def test_keda_takes_what_scales(variant: str) -> None:
    rendered = render(**VARIANTS[variant])
    authentications = rendered.kind("TriggerAuthentication")
    for one in authentications.values():
        assert one["apiVersion"] == "keda.sh/v1alpha1" and set(one["spec"]) == {"secretTargetRef"}
        for ref in one["spec"]["secretTargetRef"]:
            assert set(ref) == {"parameter", "name", "key"} and ref["parameter"] in PARAMETERS
    for one in rendered.kind("ScaledObject").values():
        spec = one["spec"]
        assert one["apiVersion"] == "keda.sh/v1alpha1" and set(spec) == SCALED
        assert set(spec["scaleTargetRef"]) == {"name"}
        assert set(spec["advanced"]) == {"horizontalPodAutoscalerConfig"}
        assert all(
            type(spec[name]) is int for name in ("pollingInterval", "minReplicaCount", "maxReplicaCount")
        )
        assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            assert all(type(value) is str for value in metadata.values()), "KEDA takes nothing but texts here"
            if trigger["type"] == "kafka":
                assert set(metadata) == KAFKA
                assert metadata["sasl"] in ("none", "plaintext", "scram_sha256", "scram_sha512")
                assert metadata["tls"] in ("enable", "disable")
            else:
                assert set(metadata) == {"query", "targetQueryValue"}
            if "authenticationRef" in trigger:
                assert trigger["authenticationRef"]["name"] in authentications
    if variant == "full":
        login = {
            ref["parameter"] for ref in authentications["loop-hearback-kafka"]["spec"]["secretTargetRef"]
        }
        assert login == PARAMETERS - {"connection"}
        kafka = [
            trigger for one in rendered.kind("ScaledObject").values() for trigger in one["spec"]["triggers"]
            if trigger["type"] == "kafka"
        ]  # fmt: skip
        assert {trigger["metadata"]["sasl"] for trigger in kafka} == {"scram_sha512"}
        assert {trigger["metadata"]["tls"] for trigger in kafka} == {"enable"}


def reaches(policy: Object) -> set[int | str]:
    """Where a policy lets its pods go: ports, and the role's name for pods of ours."""
    found: set[int | str] = set()
    for rule in policy["spec"]["egress"]:
        ours = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for peer in rule.get("to", [])
            if "app.kubernetes.io/component" in peer.get("podSelector", {}).get("matchLabels", {})
        ]
        found |= set(ours) if ours else {port["port"] for port in rule["ports"]}
    return found


def test_each_role_reaches_only_what_it_needs(full: Rendered) -> None:
    databases = {
        name: {"port": 5430 + number} for number, name in enumerate(("survey", "followup", "reporting"))
    }
    policies = render(**merged(FULL, {"databases": databases, "kafka": {"ports": [9092, 9093]}})).kind(
        "NetworkPolicy"
    )
    survey, followup, reporting = 5430, 5431, 5432
    kafka: set[int | str] = {9092, 9093}
    found = {name.removeprefix("loop-hearback-"): reaches(one) - {53} for name, one in policies.items()}
    assert found == {
        "survey-web": {survey} | kafka,
        "survey-relay": {survey} | kafka,
        "survey-consumer": {survey} | kafka,
        "survey-sender": {survey, 443},
        "survey-clock": {survey},
        "followup-web": {followup} | kafka,
        "followup-relay": {followup} | kafka,
        "followup-consumer": {followup} | kafka,
        "followup-sender": {followup, 443, "survey-web"},
        "followup-clock": {followup},
        "reporting-web": {reporting, "survey-web", "followup-web"} | kafka,
        "reporting-consumer": {reporting} | kafka,
        "migrate": {survey, followup, reporting} | kafka,
    }
    for name, one in full.kind("NetworkPolicy").items():
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
        # Workers are asked by nobody, webs by the ingress and by those who may.
        assert bool(one["spec"]["ingress"]) == name.endswith("-web")
        assert all(rule.get("to") for rule in one["spec"]["egress"]), "somewhere is nowhere in particular"
        assert all(rule.get("from") for rule in one["spec"]["ingress"])


def test_whoever_is_let_out_to_a_pod_of_ours_is_let_in_there(rendered: Rendered) -> None:
    policies = {
        name.removeprefix("loop-hearback-"): one for name, one in rendered.kind("NetworkPolicy").items()
    }
    flows = 0
    for name, one in policies.items():
        for target in reaches(one):
            if isinstance(target, str):
                let_in = {
                    peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                    for rule in policies[target]["spec"]["ingress"]
                    for peer in rule.get("from", [])
                    if "app.kubernetes.io/component" in peer.get("podSelector", {}).get("matchLabels", {})
                }
                assert name in let_in, f"{name} may go to {target}, which does not let it in"
                flows += 1
    assert flows >= 3


def test_whoever_is_told_the_address_of_a_pod_of_ours_may_go_there_and_nobody_else(
    rendered: Rendered,
) -> None:
    policies = rendered.kind("NetworkPolicy")
    told = 0
    for one in rendered.kind("Deployment").values():
        name = one["metadata"]["name"]
        addresses = {
            match[1]
            for env in container(one)["env"]
            if (match := re.fullmatch(r"http://loop-hearback-([a-z-]+):8080", env.get("value", "")))
        }
        may = {target for target in reaches(policies[name]) if isinstance(target, str)}
        # Survey's web is told where the mailbox is with the rest of the providers' settings; it never asks.
        assert addresses - ({"mailbox-web"} if name.endswith("-web") else set()) == may, name
        told += len(may)
    assert told >= 3


def test_the_providers_ports_are_those_that_are_set() -> None:
    smtp = render(**merged(SMTP, {"mail": {"smtp": {"port": 2525}}, "sms": REAL["sms"]}))
    assert reaches(smtp.kind("NetworkPolicy")["loop-hearback-survey-sender"]) == {53, 5432, 443, 2525}
    elsewhere = render(**merged(REAL, {"mail": {"sendgrid": {"url": "https://relay.example.com:8443"}}}))
    assert 8443 in reaches(elsewhere.kind("NetworkPolicy")["loop-hearback-survey-sender"])


def test_paths_lead_to_the_services_that_serve_them(full: Rendered) -> None:
    found = routes(full)
    assert found == {f"/{first}": owner for first, owner in PREFIXES.items() if owner != "mailbox"} | {
        "/": "survey"
    }
    assert routes(render())["/mailbox"] == "mailbox"
    assert set(found.values()) == set(SERVICES)
    [ingress] = full.kind("Ingress").values()
    assert ingress["spec"]["rules"][0]["host"] == "feedback.example.com"
    assert ingress["spec"]["tls"] == [{"hosts": ["feedback.example.com"], "secretName": "feedback-tls"}]
    for one in full.kind("Service").values():
        assert one["spec"]["type"] == "ClusterIP"


def test_tables_are_expanded_before_anything_starts_and_contracted_afterwards(full: Rendered) -> None:
    jobs = full.kind("Job")
    expand, contract = jobs["loop-hearback-expand"], jobs["loop-hearback-contract"]
    assert expand["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert contract["metadata"]["annotations"]["helm.sh/hook"] == "post-upgrade"
    assert container(expand)["args"] == ["migrate", "--expand"]
    assert container(contract)["args"] == ["migrate", "--wait", "240"]
    for job in jobs.values():
        migrate.make_context("migrate", list(container(job)["args"][1:]))  # the command takes these words
        refs = {
            env["valueFrom"]["secretKeyRef"]["key"]
            for env in container(job)["env"]
            if env["name"].endswith("_DATABASE_URL")
        }
        assert refs == {"direct-url"}  # past a pooler, where one is told
    assert "loop-hearback-contract" not in render(migration={"contract": False}).kind("Job")
    # Hooks come before everything else, so what they need must be one as well, and earlier.
    policy = full.kind("NetworkPolicy")["loop-hearback-migrate"]["metadata"]["annotations"]
    assert policy["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert int(policy["helm.sh/hook-weight"]) < int(expand["metadata"]["annotations"]["helm.sh/hook-weight"])


class Secrets(Mapping[tuple[str, str], str]):
    """What the Secrets hold; asked for what nobody told you to make, it fails."""

    KNOWN: ClassVar[Mapping[tuple[str, str], str]] = {
        ("hearback", "secret"): "s" * 40,
        ("hearback", "previous"): "p" * 40,
        ("hearback-sendgrid", "api-key"): "SG.key",
        # Any point of the curve: P-256's own base point.
        ("hearback-sendgrid", "webhook-public-key"): (
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8"
            "D54WK84zV2sxXs7LtkBoN79R9Q=="
        ),
        ("hearback-twilio", "account-sid"): "AC1",
        ("hearback-twilio", "auth-token"): "token",
        ("smtp", "user"): "u",
        ("smtp", "password"): "p",
        ("kafka-login", "user"): "u",
        ("kafka-login", "password"): "p",
        ("kafka-ca", "ca.crt"): "ca",
        ("kafka-client", "tls.crt"): "certificate",
        ("kafka-client", "tls.key"): "key",
    }  # fmt: skip

    def __init__(self, urls: Mapping[str, str] | None = None) -> None:
        self.urls = urls or {name: f"postgresql://{name}@db/{name}" for name in (*SERVICES, "log")}

    def __getitem__(self, place: tuple[str, str]) -> str:
        name, key = place
        if name.endswith("-database") and key in ("url", "direct-url"):
            return self.urls[name.split("-")[1]]
        return self.KNOWN[place]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.KNOWN)

    def __len__(self) -> int:
        return len(self.KNOWN)


def test_the_program_takes_the_settings_that_each_role_gets(rendered: Rendered) -> None:
    for (service, role), one in rendered.deployments().items():
        settings = load(environment(one, Secrets()), databases=["log" if service == "mailbox" else service])
        assert settings.log == "kafka" and settings.public_url == "https://feedback.example.com"
        assert (settings.host, settings.port) == ("0.0.0.0", 8080)
        assert settings.health_port == 8081
        if role == "web":  # whose pages lead to it, or do not
            assert settings.uses_mailbox == ("-mailbox-web:8080" in rendered.text)
        if (service, role) == ("followup", "sender"):
            assert settings.survey_url == "http://loop-hearback-survey-web:8080"
            assert "loop-hearback-survey-web" in rendered.kind("Service")
        assert settings.trusted_proxies == (1 if role == "web" else 0)
    for job in rendered.kind("Job").values():
        load(environment(job, Secrets()), databases=SERVICES)


@contextlib.contextmanager
def started(workload: Object, urls: Mapping[str, str], web: int | None = None) -> Iterator[int]:
    """Runs what a pod would run, with just what it would get; yields where it answers probes."""
    port, home = free_port(), Path(tempfile.mkdtemp(prefix="hearback-pod-"))
    given = environment(workload, Secrets(urls)) | {
        "HEARBACK_HOME": str(home / "home"),
        "HEARBACK_PORT": str(free_port() if web is None else web),
        "HEARBACK_HEALTH_PORT": str(port),
        "HEARBACK_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
    }
    owner = find_owner()
    owner.own(home)
    with (home / "said").open("wb") as said:
        process = subprocess.Popen(
            owner.command([sys.executable, "-m", "shared.cli", *container(workload)["args"]]),
            cwd="/", env=given, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        yield port
    finally:
        process.terminate()
        code, said_text = process.wait(30), (home / "said").read_text()
        shutil.rmtree(home)
    assert code == 0, said_text


def asked(port: int, path: str) -> int:
    try:
        return urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=10).status
    except urllib3.exceptions.HTTPError:
        return 0


def until(port: int, path: str, status: int) -> None:
    give_up = time.monotonic() + 60
    while asked(port, path) != status:
        assert time.monotonic() < give_up, (path, asked(port, path))
        time.sleep(0.05)


@pytest.mark.parametrize(("role", "ready"), [("clock", 200), ("relay", 503), ("consumer", 503)])
def test_what_a_pod_gets_is_enough_and_a_gone_log_makes_unready_but_restarts_nothing(
    role: str, ready: int, database_urls: FreshDatabases
) -> None:
    workload = render().deployments()["followup", role]
    urls = {"followup": database_urls["followup"]}
    with started(workload, urls) as port:
        until(port, "/followup/healthz", 200)
        until(port, "/followup/readyz", ready)
        assert asked(port, "/followup/healthz") == 200


def test_a_web_whose_database_hangs_is_unready_and_still_alive() -> None:
    workload = render().deployments()["survey", "web"]
    with socket.socket() as hangs:
        # Takes connections, and never says a word: every thread of the web will wait for it.
        hangs.bind(("127.0.0.1", 0))
        hangs.listen(200)
        urls = {"survey": f"postgresql://survey:x@127.0.0.1:{hangs.getsockname()[1]}/survey"}
        web = free_port()
        with started(workload, urls, web) as port:
            until(port, "/survey/healthz", 200)
            until(web, "/survey/readyz", 503)
            with ThreadPoolExecutor(32) as people:
                waiting = [people.submit(asked, web, "/survey/readyz") for _ in range(32)]
                began = time.monotonic()
                for _ in range(20):
                    assert asked(port, "/survey/healthz") == 200
                assert time.monotonic() - began < 5
                assert not all(one.done() for one in waiting), "nobody had to wait: the test tests nothing"


def test_the_command_in_the_notes_makes_the_first_administrator(database_urls: FreshDatabases) -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    command = re.search(r"hearback staff add (.+)", notes)
    assert command and "-followup-web --" in notes
    workload = render().deployments()["followup", "web"]
    given = environment(workload, Secrets({"followup": database_urls["followup"]}))
    done = subprocess.run(
        [sys.executable, "-m", "shared.cli", "staff", "add", *shlex.split(command[1])],
        cwd="/", env=given | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    connection = psycopg2.connect(database_urls["followup"])
    try:
        with connection.cursor() as cur:
            cur.execute("SELECT email, role FROM staff")
            assert cur.fetchall() == [("you@example.com", "admin")]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"publicUrl": ""}, "publicUrl is not set"),
        ({"publicUrl": "feedback.example.com"}, "/publicUrl"),
        ({"kafka": {"bootstrap": ""}}, "kafka.bootstrap is not set"),
        ({"kafka": {"bootstrap": "kafka"}}, "/kafka/bootstrap"),
        ({"kafka": {"bootstrap": "kafka:9094"}}, "kafka.bootstrap names port 9094"),
        ({"kafka": {"security": "sasl_ssl"}}, "kafka.saslSecret.name is not set"),
        ({"kafka": {"security": "tls"}}, "/kafka/security"),
        ({"mail": {"provider": "postmark"}}, "/mail/provider"),
        ({"mail": {"provider": "smtp"}}, "mail.smtp.host is not set"),
        ({"sms": {"provider": "twilio"}}, "sms.twilio needs one of from and messagingServiceSid"),
        ({"secret": {"value": "do not put it here"}}, "additional properties 'value' not allowed"),
        (
            {"databases": {"survey": {"url": "postgresql://u:p@h/d"}}},
            "additional properties 'url' not allowed",
        ),
        ({"replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
        ({"roles": {"survey": {"web": {"min": 5, "max": 2}}}}, "max (2) is less than min (5)"),
        ({"roles": {"survey": {"web": {"min": 0}}}}, "/roles/survey/web/min"),
        ({"roles": {"reporting": {"relay": {"min": 1}}}}, "additional properties 'relay' not allowed"),
        ({"user": 0}, "/user"),
        ({"ingress": {"proxies": 9}}, "/ingress/proxies"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_refused_by_name(values: Mapping[str, Any], said: str) -> None:
    done = template(merged(LEAST, values))
    assert done.returncode != 0 and said in done.stderr, done.stderr


def test_every_value_is_documented() -> None:
    def names(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from names(value, f"{before}{name}.")
            else:
                yield f"{before}{name}"

    readme = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    listed = [name for name in names(values) if not name.startswith(("databases.", "roles."))]
    assert [name for name in listed if f"`{name}`" not in readme] == []
    for part in ("secret.name", "secret.key", "secret.migrationKey", "port", "peers"):
        assert f"`databases.NAME.{part}`" in readme
    for part in ("min", "max", "target", "replicas", "resources"):
        assert f"`roles.SERVICE.ROLE.{part}`" in readme
