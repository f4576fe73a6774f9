"""The Helm chart as the helm that `.ci/helm` brought renders it, and Kubernetes' schemas for its objects."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "infra" / "helm"
_BIN = ROOT / "build" / "helm"

Object = dict[str, Any]
# What must be given: the rest has defaults.
LEAST = {"publicUrl": "https://feedback.example.com", "kafka": {"bootstrap": "kafka-1:9092,kafka-2:9092"}}


def tool(name: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `helm` or `kubeconform`."""
    if not (_BIN / ".installed").exists():
        pytest.skip("needs helm and kubeconform: run .ci/helm")
    return subprocess.run(
        [str(_BIN / name), *arguments], input=given, capture_output=True, text=True, check=False, timeout=120
    )


def template(values: Mapping[str, Any], release: str = "loop") -> subprocess.CompletedProcess[str]:
    """`helm template` with `values` laid over the defaults."""
    return tool("helm", "template", release, str(CHART), "--values", "-", given=yaml.safe_dump(dict(values)))


@dataclass(frozen=True)
class Rendered:
    """All objects of one rendering."""

    text: str
    objects: Sequence[Object]

    def kind(self, kind: str) -> dict[str, Object]:
        """The objects of a kind, by name."""
        found = [one for one in self.objects if one["kind"] == kind]
        by_name = {one["metadata"]["name"]: one for one in found}
        assert len(by_name) == len(found), f"two {kind}s have one name"
        return by_name

    def deployments(self) -> dict[tuple[str, str], Object]:
        """The deployments by (service, role), as the command says."""
        return {tuple(container(one)["args"][1:]): one for one in self.kind("Deployment").values()}

    def pods(self) -> Iterator[Object]:
        """The templates of all pods."""
        for one in self.objects:
            if one["kind"] in ("Deployment", "Job"):
                yield one["spec"]["template"]


def render(**values: Any) -> Rendered:
    """The chart with the least values and these."""
    done = template(merged(LEAST, values))
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    return Rendered(done.stdout, objects)


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`other` laid over `one`, mapping by mapping."""
    found = dict(one)
    for name, value in other.items():
        before = found.get(name)
        found[name] = (
            merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return found


def container(workload: Object) -> Object:
    """The one container of a deployment or job."""
    containers: list[Object] = workload["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def environment(workload: Object, secrets: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """The variables a pod gets when the Secrets hold `secrets`, by (name, key)."""
    found = {}
    for one in container(workload)["env"]:
        assert one["name"] not in found, one["name"]
        if "value" in one:
            found[one["name"]] = one["value"]
        else:
            ref = one["valueFrom"]["secretKeyRef"]
            found[one["name"]] = secrets[ref["name"], ref["key"]]
    return found


def schemas(version: str, folder: Path) -> str:
    """Where kubeconform finds Kubernetes' schemas of a version, from a package that carries them."""
    source = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    for name in (
        "_definitions", "deployment-apps-v1", "poddisruptionbudget-policy-v1", "service-v1", "job-batch-v1",
        "horizontalpodautoscaler-autoscaling-v2", "ingress-networking-v1", "networkpolicy-networking-v1",
    ):  # fmt: skip
        # They refer to each other on the web; here to the file beside them.
        beside = f'"{(folder / "_definitions.json").as_uri()}'
        text = (source / f"{name}.json").read_text().replace('"/api/_definitions.json', beside)
        (folder / f"{name}.json").write_text(text)
    return f"{folder}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"


def routes(rendered: Rendered) -> dict[str, str]:
    """Path to service, as the ingress says."""
    [ingress] = rendered.kind("Ingress").values()
    [rule] = ingress["spec"]["rules"]
    found = {}
    for path in rule["http"]["paths"]:
        assert path["pathType"] == "Prefix"
        match = re.fullmatch(r"loop-hearback-(\w+)-web", path["backend"]["service"]["name"])
        assert match, path
        found[path["path"]] = match[1]
    return found
