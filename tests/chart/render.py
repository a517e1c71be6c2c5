"""Rendering the chart: values in, objects out; or the refusal's words."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chart.tools import CHART, NEWEST_HELM, helm

Object = dict[str, Any]
Values = Mapping[str, Any]


class Refused(Exception):
    """Helm rendered nothing; its text says why."""


@dataclass(frozen=True)
class Renderer:
    """One release of Helm, rendering for one release of Kubernetes."""

    helm_version: str = NEWEST_HELM
    kubernetes: str = "1.30.0"
    chart: Path = CHART
    release: str = "rdzv"
    namespace: str = "lattice"
    arguments: tuple[str, ...] = field(default=())

    def text(self, values: Values | None = None, *files: Path) -> str:
        """What Helm prints; `Refused` with what it says otherwise."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as own:
            json.dump(values or {}, own)
            own.flush()
            command = [str(helm(self.helm_version)), "template", self.release, str(self.chart)]
            command += ["--namespace", self.namespace, "--kube-version", self.kubernetes, *self.arguments]
            for file in (*files, own.name):
                command += ["--values", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(done.stderr)
        return done.stdout

    def objects(self, values: Values | None = None, *files: Path) -> Objects:
        """The objects that are installed."""
        return Objects([one for one in parse(self.text(values, *files)) if not is_hook(one)])

    def hooks(self, values: Values | None = None, *files: Path) -> Objects:
        """The pods of `helm test`."""
        return Objects([one for one in parse(self.text(values, *files)) if is_hook(one)])


def parse(text: str) -> list[Object]:
    """The documents that are not empty."""
    return [document for document in yaml.safe_load_all(text) if document]


def is_hook(one: Object) -> bool:
    """Whether it exists only for a while."""
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


class Objects:
    """Rendered objects, to be found by kind and name."""

    def __init__(self, all_of_them: Sequence[Object]) -> None:
        self.all = list(all_of_them)

    def names(self) -> set[tuple[str, str]]:
        """Kind and name of each."""
        return {(one["kind"], one["metadata"]["name"]) for one in self.all}

    def kinds(self) -> list[str]:
        """Every kind, sorted."""
        return sorted(one["kind"] for one in self.all)

    def get(self, kind: str, name: str = "lattice-rdzv", *, namespace: str = "lattice") -> Object:
        """The one of that kind and name."""
        found = [
            one
            for one in self.all
            if (one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) == (kind, name, namespace)
        ]
        assert len(found) == 1, f"{kind} {name} in {namespace}: {len(found)} of {self.names()}"
        return found[0]

    @property
    def workload(self) -> Object:
        """The Deployment or the StatefulSet."""
        found = [one for one in self.all if one["kind"] in ("Deployment", "StatefulSet")]
        assert len(found) == 1, self.kinds()
        return found[0]

    @property
    def pod(self) -> Object:
        """The workload's pod template."""
        return dict(self.workload["spec"]["template"])

    @property
    def etcd(self) -> Object:
        """The container etcd."""
        return self.container("etcd")

    def container(self, name: str) -> Object:
        """A container of the pod template."""
        return next(one for one in self.pod["spec"]["containers"] if one["name"] == name)

    @property
    def flags(self) -> dict[str, str]:
        """etcd's arguments by name."""
        return dict(argument.removeprefix("--").split("=", 1) for argument in self.etcd["args"])

    @property
    def agents(self) -> dict[str, str]:
        """What agents get from the ConfigMap."""
        return dict(self.get("ConfigMap", "lattice-rdzv-config")["data"])


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 as `{"a": {"b": 1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def merged(*values: Values) -> dict[str, Any]:
    """Values over values, as Helm lays them."""
    out: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


# Objects of Kubernetes that are passed on whole.
WHOLE = ("podSecurityContext", "containerSecurityContext", "tests.annotations", "metrics.grafanaDashboard.labels")


def leaves(values: Values, above: str = "") -> dict[str, Any]:
    """Each value that is not itself a map of values, by its path; an empty map is one."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value and path not in WHOLE:
            out.update(leaves(value, f"{path}."))
        else:
            out[path] = value
    return out


def default_values() -> dict[str, Any]:
    """values.yaml as it stands."""
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


EMBEDDED = {"engine": "embedded", "image": "lattice-rdzv:0.2.0"}
MEMBERS = {"replicaCount": 3, "persistence": {"enabled": True}}
MTLS = {
    "tls": {
        "client": {"enabled": True, "existingSecret": "rdzv-client-tls"},
        "peer": {"enabled": True, "existingSecret": "rdzv-peer-tls"},
    }
}
AUTH = {"persistence": {"enabled": True}, "auth": {"enabled": True, "existingSecret": "rdzv-auth"}}
