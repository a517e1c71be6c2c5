"""kubectl as the scenarios use it: to apply and read objects, and to run a command in a pod."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

Object = dict[str, Any]

# The label with the name of a Kubernetes node.
HOSTNAME = "kubernetes.io/hostname"
# The time until an image has started and a probe succeeds, on a machine with two cores that other programs use too.
PATIENCE_SECONDS = 120.0


class Failed(Exception):
    """A command has failed. The message has the command, its status and its output."""

    def __init__(self, command: list[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {status}: {output[-4000:]}")


def run(
    command: list[str],
    *,
    text: str | None = None,
    timeout_seconds: float = 300,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command and returns its standard output, or raises `Failed` with all of its output."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired as late:
        printed = f"{late.stdout!r} {late.stderr!r}"
        raise Failed(command, -1, f"no end within {timeout_seconds:g} s: {printed}") from None
    if done.returncode != 0:
        raise Failed(command, done.returncode, done.stdout + done.stderr)
    return done.stdout


def find_kubectl(*folders: Path) -> Path | None:
    """Returns kubectl on the PATH, or else in one of the folders."""
    found = shutil.which("kubectl")
    if found:
        return Path(found)
    return next((folder / "kubectl" for folder in folders if (folder / "kubectl").exists()), None)


class Kubernetes:
    """A cluster behind a kubeconfig."""

    def __init__(self, kubectl: Path, kubeconfig: Path) -> None:
        self.kubectl = kubectl
        self.kubeconfig = kubeconfig

    def command(self, *arguments: str) -> list[str]:
        """Returns the command line of `kubectl ARGUMENTS`."""
        return [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]

    def __call__(self, *arguments: str, text: str | None = None, timeout_seconds: float = 300) -> str:
        """Runs `kubectl ARGUMENTS` and returns its output."""
        return run(self.command(*arguments), text=text, timeout_seconds=timeout_seconds)

    def apply(self, *objects: Object) -> None:
        """Creates or changes objects."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--filename=-", text=json.dumps(document))

    def create(self, one: Object) -> None:
        """Creates an object, or raises `Failed` if an object of this name exists."""
        self("create", "--filename=-", text=json.dumps(one))

    def list(self, kind: str, namespace: str, *, selector: str = "", field: str = "") -> list[Object]:
        """Returns the objects of a kind in a namespace, all or selected by a label or a field."""
        which = (f"--namespace={namespace}", f"--selector={selector}", f"--field-selector={field}")
        printed = self("get", kind, *which, "--output=json")
        return list(json.loads(printed)["items"])

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Returns one object."""
        return dict(json.loads(self("get", kind, name, f"--namespace={namespace}", "--output=json")))

    def execute(self, namespace: str, pod: str, *command: str, container: str = "", timeout_seconds: float = 60) -> str:
        """Runs a command in a container and returns its output."""
        where = ["exec", pod, f"--namespace={namespace}", *([f"--container={container}"] if container else [])]
        return self(*where, "--", *command, timeout_seconds=timeout_seconds)

    def wait(self, what: str, condition: str, namespace: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits for `kubectl wait --for=CONDITION WHAT`."""
        limit = f"--timeout={timeout_seconds:g}s"
        self(
            "wait", what, f"--for={condition}", f"--namespace={namespace}", limit, timeout_seconds=timeout_seconds + 30
        )

    def roll_out(self, what: str, namespace: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until a workload has reached its requested state."""
        limit = f"--timeout={timeout_seconds:g}s"
        self("rollout", "status", what, f"--namespace={namespace}", limit, timeout_seconds=timeout_seconds + 30)


def holds(condition: str, one: Object) -> bool:
    """Returns whether an object's condition of this type is true."""
    conditions = one.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


def takes_pods(node: Object) -> bool:
    """Returns whether a node accepts pods without tolerations."""
    return all(taint["effect"] == "PreferNoSchedule" for taint in node["spec"].get("taints", []))


def is_leaving(one: Object) -> bool:
    """Returns whether an object is being deleted."""
    return "deletionTimestamp" in one["metadata"]


def is_ready(pod: Object) -> bool:
    """Returns whether a pod is ready and not being deleted."""
    return holds("Ready", pod) and not is_leaving(pod)
