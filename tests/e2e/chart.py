"""The chart, installed by a real Helm as its README describes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from chart.render import Object, merged
from chart.tools import CHART, NEWEST_HELM, helm

from e2e.kubernetes import Kubernetes, run
from e2e.wait import wait_for

RELEASE = "rdzv"


class Chart:
    """One release in one namespace."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, *, helm_version: str = NEWEST_HELM) -> None:
        self.kubernetes = kubernetes
        self.namespace = namespace
        self.helm_version = helm_version
        self.values: dict[str, Any] = {}
        # What Helm installs: this checkout, or a chart of a repository.
        self.source: tuple[str, ...] = (str(CHART),)

    def helm(self, *arguments: str) -> str:
        """Runs `helm ARGUMENTS` in the namespace."""
        command = [str(helm(self.helm_version)), *arguments, f"--namespace={self.namespace}"]
        command.append(f"--kubeconfig={self.kubernetes.kubeconfig}")
        return run(command)

    def install(self, values: Mapping[str, Any] | None = None, *arguments: str, patience_seconds: float = 300) -> str:
        """Runs `helm install`, waits until the service is ready unless `--wait` is among the arguments, and returns the notes."""
        return self._apply("install", values or {}, *arguments, patience_seconds=patience_seconds)

    def upgrade(self, values: Mapping[str, Any] | None = None, *arguments: str) -> str:
        """Runs `helm upgrade` with these values over the previous ones, and waits as `install` does."""
        return self._apply("upgrade", merged(self.values, values or {}), *arguments)

    def _apply(self, verb: str, values: Mapping[str, Any], *arguments: str, patience_seconds: float = 300) -> str:
        with values_file(values) as file:
            printed = self.helm(verb, RELEASE, *self.source, f"--values={file}", *arguments)
        self.values = dict(values)
        if "--wait" not in arguments:
            self.roll_out(patience_seconds)
        return printed

    def roll_out(self, patience_seconds: float = 300) -> None:
        """Waits until the service's workload has reached its requested state."""
        self.kubernetes.roll_out(self.workload, self.namespace, timeout_seconds=patience_seconds)

    @property
    def workload(self) -> str:
        """The service's workload, as kubectl names it."""
        kind = "statefulset" if self.values.get("persistence", {}).get("enabled") else "deployment"
        return f"{kind}/lattice-rdzv"

    def pods(self) -> list[Object]:
        """Returns the service's pods."""
        return self.kubernetes.list("pods", self.namespace, selector="app=lattice-rdzv")

    def evict(self, pod: str) -> None:
        """Requests the eviction of a pod from the API server, as a drain does."""
        metadata = {"name": pod, "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubernetes("create", "--raw", path, "--filename=-", text=json.dumps(eviction))

    def etcdctl(self, *arguments: str, pod: str = "") -> str:
        """Runs etcdctl in a pod of the service. It repeats a read, but not a write, until its time limit."""
        command = ("etcdctl", "--command-timeout=30s", *arguments)
        return self.kubernetes.execute(self.namespace, pod or self.workload, *command, container="etcd")

    def write(self, *arguments: str) -> None:
        """Runs a command of etcdctl that writes until it succeeds."""
        wait_for(f"etcd accepts {arguments}", lambda: bool(self.etcdctl(*arguments)))

    def uninstall(self) -> None:
        """Runs `helm uninstall`, and waits for its end."""
        self.helm("uninstall", RELEASE, "--wait", "--timeout=120s")

    def gone(self) -> None:
        """Waits until no pod is left. Kubernetes removes pods after it has removed their owners."""
        left = partial(self.kubernetes.list, "pods", self.namespace)
        wait_for("no pod is left", lambda: not left(), timeout_seconds=180)


@contextmanager
def values_file(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the name of a file with these values, for Helm."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        yield file.name


def apply_as_gitops(chart: Chart, rendered: str) -> None:
    """Applies a render on the server side, as a controller does."""
    chart.kubernetes("apply", "--server-side", "--field-manager=gitops", "--filename=-", text=without_tests(rendered))


def without_tests(rendered: str) -> str:
    """Returns a render without the pods of `helm test`, which controllers leave out."""
    return "---\n".join(one for one in rendered.split("---\n") if "helm.sh/hook" not in one)
