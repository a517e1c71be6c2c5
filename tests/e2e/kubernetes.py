"""kubectl, as the stories use it: objects in, objects out, one command in a pod."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

Object = dict[str, Any]

# What an image's start and a probe's first success take on a machine of two cores that others use too.
PATIENCE_SECONDS = 120.0


class Failed(Exception):
    """A command that ended with another status than 0; its text says which and what it printed."""

    def __init__(self, command: list[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {status}: {output[-4000:]}")


def run(
    command: list[str],
    *,
    text: str | None = None,
    timeout_seconds: float = 300,
    environment: dict[str, str] | None = None,
) -> str:
    """Runs a command and returns what it printed on stdout; `Failed` with everything otherwise."""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise Failed(command, done.returncode, done.stdout + done.stderr)
    return done.stdout


def find_kubectl(*folders: Path) -> Path | None:
    """The one on the PATH, else the one in a folder."""
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
        """The command line of `kubectl ARGUMENTS`."""
        return [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments]

    def __call__(self, *arguments: str, text: str | None = None, timeout_seconds: float = 300) -> str:
        """Runs `kubectl ARGUMENTS` and returns what it printed."""
        return run(self.command(*arguments), text=text, timeout_seconds=timeout_seconds)

    def apply(self, *objects: Object) -> None:
        """Creates or changes objects."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--filename=-", text=json.dumps(document))

    def create(self, one: Object) -> None:
        """Creates an object; `Failed` if there is one of its name."""
        self("create", "--filename=-", text=json.dumps(one))

    def list(self, kind: str, namespace: str, *, selector: str = "", field: str = "") -> list[Object]:
        """The objects of a kind in a namespace, all or by a label or a field."""
        which = (f"--namespace={namespace}", f"--selector={selector}", f"--field-selector={field}")
        answer = self("get", kind, *which, "--output=json")
        return list(json.loads(answer)["items"])

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """One object."""
        return dict(json.loads(self("get", kind, name, f"--namespace={namespace}", "--output=json")))

    def execute(self, namespace: str, pod: str, *command: str, container: str = "", timeout_seconds: float = 60) -> str:
        """Runs a command in a container and returns what it printed."""
        where = ["exec", pod, f"--namespace={namespace}", *([f"--container={container}"] if container else [])]
        return self(*where, "--", *command, timeout_seconds=timeout_seconds)

    def wait(self, what: str, condition: str, namespace: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits for `kubectl wait --for=CONDITION WHAT`."""
        limit = f"--timeout={timeout_seconds:g}s"
        self(
            "wait", what, f"--for={condition}", f"--namespace={namespace}", limit, timeout_seconds=timeout_seconds + 30
        )

    def roll_out(self, what: str, namespace: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until a workload is as it was last asked for."""
        limit = f"--timeout={timeout_seconds:g}s"
        self("rollout", "status", what, f"--namespace={namespace}", limit, timeout_seconds=timeout_seconds + 30)


def holds(condition: str, one: Object) -> bool:
    """Whether an object's condition of that type is true."""
    conditions = one.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


def takes_pods(node: Object) -> bool:
    """Whether pods of everybody may come to a node."""
    return all(taint["effect"] == "PreferNoSchedule" for taint in node["spec"].get("taints", []))


def is_leaving(one: Object) -> bool:
    """Whether an object is on its way out."""
    return "deletionTimestamp" in one["metadata"]


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and not on its way out."""
    return holds("Ready", pod) and not is_leaving(pod)
