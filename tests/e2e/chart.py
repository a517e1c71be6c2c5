"""The chart, installed by a real Helm as its README says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from chart.render import Object, merged
from chart.tools import CHART, NEWEST_HELM, helm
from harness.wait import wait_for

from e2e.kubernetes import Kubernetes, run

RELEASE = "rdzv"


class Chart:
    """One release in one namespace."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, *, helm_version: str = NEWEST_HELM) -> None:
        self.kubernetes = kubernetes
        self.namespace = namespace
        self.helm_version = helm_version
        self.values: dict[str, Any] = {}

    def helm(self, *arguments: str) -> str:
        """Runs `helm ARGUMENTS` in the namespace."""
        command = [str(helm(self.helm_version)), *arguments, f"--namespace={self.namespace}"]
        command.append(f"--kubeconfig={self.kubernetes.kubeconfig}")
        return run(command)

    def install(self, values: Mapping[str, Any] | None = None, *arguments: str, patience_seconds: float = 180) -> str:
        """`helm install`, and waits until the store is ready. Returns the notes."""
        return self._apply("install", values or {}, *arguments, patience_seconds=patience_seconds)

    def upgrade(self, values: Mapping[str, Any] | None = None, *arguments: str) -> str:
        """`helm upgrade` with these values over those before, and waits until the store is ready."""
        return self._apply("upgrade", merged(self.values, values or {}), *arguments)

    def _apply(self, verb: str, values: Mapping[str, Any], *arguments: str, patience_seconds: float = 180) -> str:
        with values_file(values) as file:
            printed = self.helm(verb, RELEASE, str(CHART), f"--values={file}", *arguments)
        self.values = dict(values)
        self.roll_out(patience_seconds)
        return printed

    def roll_out(self, patience_seconds: float = 180) -> None:
        """Waits until the store is as it was last asked for."""
        self.kubernetes.roll_out(self.workload, self.namespace, timeout_seconds=patience_seconds)

    @property
    def workload(self) -> str:
        """The store's workload, as kubectl names it."""
        kind = "statefulset" if self.values.get("persistence", {}).get("enabled") else "deployment"
        return f"{kind}/lattice-rdzv"

    def pods(self) -> list[Object]:
        """The store's pods."""
        return self.kubernetes.list("pods", self.namespace, selector="app=lattice-rdzv")

    def etcdctl(self, *arguments: str, pod: str = "") -> str:
        """Runs etcdctl in the store."""
        return self.kubernetes.execute(self.namespace, pod or self.workload, "etcdctl", *arguments, container="etcd")

    def uninstall(self) -> None:
        """`helm uninstall`, and waits for it."""
        self.helm("uninstall", RELEASE, "--wait", "--timeout=120s")

    def gone(self) -> None:
        """Waits until no pod of any name is left: what removes them does so after their owners."""
        left = partial(self.kubernetes.list, "pods", self.namespace)
        wait_for("no pod is left", lambda: not left(), timeout_seconds=60, every_seconds=1)


@contextmanager
def values_file(values: Mapping[str, Any]) -> Iterator[str]:
    """A file of values that Helm reads."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        yield file.name
