"""Renders the chart with given values. The result is the objects, or an exception with the chart's message."""

from __future__ import annotations

import functools
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

# They are ten times as fast, but PyYAML may be built without them.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Refused(Exception):
    """Helm has refused to render. The message is Helm's."""


@dataclass(frozen=True)
class Renderer:
    """Renders with one release of Helm for one release of Kubernetes."""

    helm_version: str = NEWEST_HELM
    kubernetes: str = "1.30.0"
    chart: Path = CHART
    release: str = "rdzv"
    namespace: str = "lattice"
    arguments: tuple[str, ...] = field(default=())

    def text(self, values: Values | None = None, *files: Path) -> str:
        """Returns Helm's output, or raises `Refused` with its error."""
        return _render(self, json.dumps(values or {}), files)

    def objects(self, values: Values | None = None, *files: Path) -> Objects:
        """Returns the objects that are installed."""
        return Objects([one for one in parse(self.text(values, *files)) if not is_hook(one)])

    def hooks(self, values: Values | None = None, *files: Path) -> Objects:
        """Returns the pods of `helm test`."""
        return Objects([one for one in parse(self.text(values, *files)) if is_hook(one)])


# Most tests render the default values, too.
@functools.cache
def _render(renderer: Renderer, values: str, files: tuple[Path, ...]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as own:
        own.write(values)
        own.flush()
        command = [str(helm(renderer.helm_version)), "template", renderer.release, str(renderer.chart)]
        command += ["--namespace", renderer.namespace, "--kube-version", renderer.kubernetes, *renderer.arguments]
        for file in (*files, own.name):
            command += ["--values", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def parse(text: str) -> list[Object]:
    """Returns the documents that are not empty."""
    return [document for document in yaml.load_all(text, Loader=LOADER) if document]


def is_hook(one: Object) -> bool:
    """Returns whether an object is a hook, which exists only temporarily."""
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


class Objects:
    """Rendered objects, which can be found by kind and name."""

    def __init__(self, all_of_them: Sequence[Object]) -> None:
        self.all = list(all_of_them)

    def names(self) -> set[tuple[str, str]]:
        """Returns kind and name of each object."""
        return {(one["kind"], one["metadata"]["name"]) for one in self.all}

    def kinds(self) -> list[str]:
        """Returns the kind of each object, sorted."""
        return sorted(one["kind"] for one in self.all)

    def get(self, kind: str, name: str = "lattice-rdzv", *, namespace: str = "lattice") -> Object:
        """Returns the only object of this kind and name."""
        found = [
            one
            for one in self.all
            if (one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) == (kind, name, namespace)
        ]
        assert len(found) == 1, f"{kind} {name} in {namespace}: {len(found)} of {self.names()}"
        return found[0]

    @property
    def workload(self) -> Object:
        """The Deployment or the StatefulSet of the service."""
        own = (("Deployment", "lattice-rdzv"), ("StatefulSet", "lattice-rdzv"))
        found = [one for one in self.all if (one["kind"], one["metadata"]["name"]) in own]
        assert len(found) == 1, self.kinds()
        return found[0]

    @property
    def pod(self) -> Object:
        """The workload's pod template."""
        return dict(self.workload["spec"]["template"])

    @property
    def etcd(self) -> Object:
        """The container `etcd`."""
        return self.container("etcd")

    def container(self, name: str) -> Object:
        """Returns a container of the pod template."""
        return next(one for one in self.pod["spec"]["containers"] if one["name"] == name)

    @property
    def flags(self) -> dict[str, str]:
        """etcd's arguments by name."""
        return dict(argument.removeprefix("--").split("=", 1) for argument in self.etcd["args"])

    @property
    def agents(self) -> dict[str, str]:
        """The variables that agents get from the ConfigMap."""
        return dict(self.get("ConfigMap", "lattice-rdzv-config")["data"])


def nested(path: str, value: Any) -> dict[str, Any]:
    """Returns `{"a": {"b": 1}}` for `a.b` and 1."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def merged(*values: Values) -> dict[str, Any]:
    """Merges values in the order in which Helm does."""
    out: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


# Values that are objects of Kubernetes, which the chart renders unchanged.
WHOLE = ("podSecurityContext", "containerSecurityContext", "tests.annotations", "metrics.grafanaDashboard.labels")


def leaves(values: Values, above: str = "") -> dict[str, Any]:
    """Returns each value that is not a map of other values, by its path. An empty map is such a value."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value and path not in WHOLE:
            out.update(leaves(value, f"{path}."))
        else:
            out[path] = value
    return out


def default_values() -> dict[str, Any]:
    """Returns the values of values.yaml."""
    return dict(yaml.load((CHART / "values.yaml").read_text(), Loader=LOADER))


EMBEDDED = {"engine": "embedded", "image": "lattice-rdzv:0.2.0"}
MEMBERS = {"replicaCount": 3, "persistence": {"enabled": True}}
MTLS = {
    "tls": {
        "client": {"enabled": True, "existingSecret": "rdzv-client-tls"},
        "peer": {"enabled": True, "existingSecret": "rdzv-peer-tls"},
    }
}
AUTH = {"persistence": {"enabled": True}, "auth": {"enabled": True, "existingSecret": "rdzv-auth"}}
