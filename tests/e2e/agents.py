"""Jobs of real torchrun agents in pods, and the output of their workers."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from harness.torchrun import TRAIN, Line

from e2e.cluster import OF_THIS_SESSION, ROOT, Cluster
from e2e.kubernetes import PATIENCE_SECONDS, Kubernetes, Object, holds, is_leaving, run
from e2e.wait import wait_for

# The time that an agent and its worker need to import torch if several pods do so at once on two cores.
START_SECONDS = 180.0
UNTIL = "/tmp/until"
# The label with the scenario of a namespace, and with the namespace of a volume.
SCENARIO = "lattice-rdzv-scenario"
EXAMPLE = ROOT / "examples" / "job" / "job.yaml"


def example_job() -> Object:
    """Returns the Job that users copy. Every agent of these scenarios is one of its pods, with the scenario's changes."""
    return dict(yaml.safe_load(EXAMPLE.read_text()))


def forget_id(container: Object) -> None:
    """Removes the run id, which is the Job's uid, from the variables of an agent."""
    container["env"] = [one for one in container["env"] if not one["name"].startswith("LATTICE_RDZV_")]


def idle_pod(image: str, name: str, namespace: str) -> Object:
    """Returns a pod of the example's Job that waits for commands, and ends at once when it is deleted."""
    spec = example_job()["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    one["image"], one["command"], one["args"] = image, ["sleep", "infinity"], []
    # The pod has no Job and therefore no Job's uid.
    forget_id(one)
    one["volumeMounts"], spec["volumes"] = [], []
    spec["terminationGracePeriodSeconds"] = 1
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


class AgentPod:
    """A pod in which commands are run."""

    def __init__(self, kubernetes: Kubernetes, manifest: Object) -> None:
        self._kubernetes = kubernetes
        self.name: str = manifest["metadata"]["name"]
        self.namespace: str = manifest["metadata"]["namespace"]
        kubernetes.apply(manifest)
        kubernetes.wait(f"pod/{self.name}", "condition=Ready", self.namespace)

    def __call__(self, *command: str, timeout_seconds: float = 60) -> str:
        """Runs a command in it and returns what it printed."""
        return self._kubernetes.execute(self.namespace, self.name, *command, timeout_seconds=timeout_seconds)

    def doctor(self) -> dict[str, Object]:
        """Returns doctor's findings by check. Its exit status is 1 if a check failed."""
        findings = json.loads(self("sh", "-c", "lattice-rdzv doctor --timeout 30 --json || true", timeout_seconds=120))
        return {one["check"]: one for one in findings}

    def finds(self) -> str:
        """Waits until the service that `doctor` finds accepts writes, and returns its endpoint."""
        findings: dict[str, Object] = {}

        def may_write() -> bool:
            findings.clear()
            findings.update(self.doctor())
            return findings.get("permission to write", {}).get("status") == "ok"

        wait_for("doctor may write", may_write, detail=lambda: str(findings))
        return str(findings["service"]["found"]).removesuffix(" responds")

    def environment(self) -> dict[str, str]:
        """Returns the variables with which the pod's processes start."""
        return dict(line.split("=", 1) for line in self("env").splitlines() if "=" in line)


@dataclass
class Follower:
    """Follows the log of a pod. The file remains after the pod is gone."""

    pod: str
    file: Path
    process: subprocess.Popen[bytes]

    def lines(self) -> list[tuple[str, str]]:
        """Returns the time and the text of each line."""
        split = (line.partition(" ") for line in self.file.read_text(errors="replace").splitlines())
        return [(at, text) for at, _, text in split]


class Logs:
    """The logs of pods in a namespace."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, folder: Path) -> None:
        self._kubernetes = kubernetes
        self.namespace = namespace
        self._folder = folder
        self.followers: dict[str, Follower] = {}

    def follow(self, pods: list[Object]) -> None:
        """Follows the log of each pod whose container has started, once."""
        for one in pods:
            uid = one["metadata"]["uid"]
            statuses = one.get("status", {}).get("containerStatuses", [])
            if not statuses or "waiting" in statuses[0]["state"]:
                continue
            # kubectl may lose the log of a container that is still running. Then the file is written again from its start.
            earlier = self.followers.get(uid)
            if earlier is not None and (earlier.process.poll() is None or "running" not in statuses[0]["state"]):
                continue
            name = one["metadata"]["name"]
            file = self._folder / f"{name}-{uid[:8]}.log"
            command = self._kubernetes.command(
                "logs",
                name,
                f"--namespace={self.namespace}",
                "--follow",
                "--timestamps",
                f"--container={statuses[0]['name']}",
            )
            with file.open("wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
            self.followers[uid] = Follower(name, file, process)

    def close(self) -> None:
        """Ends the followers. Their files remain."""
        for one in self.followers.values():
            one.process.kill()
            one.process.wait()


Worker = tuple[str, int, int]


def worker(line: Line) -> Worker:
    """Returns the identity of a worker. The port of a round is not enough, because rounds in two pods may have one port."""
    return line.node, line.pid, line.master_port


class Job:
    """An Indexed Job of torchrun agents, which train until the scenario ends them."""

    def __init__(self, kubernetes: Kubernetes, logs: Logs, manifest: Object) -> None:
        self._kubernetes = kubernetes
        self.logs = logs
        self.namespace: str = manifest["metadata"]["namespace"]
        self.name: str = manifest["metadata"]["name"]
        self._kubernetes.apply(manifest)

    def pods(self) -> list[Object]:
        """Returns the Job's pods, and follows their logs from now on."""
        pods = self._kubernetes.list("pods", self.namespace, selector=f"job-name={self.name}")
        self.logs.follow(pods)
        return pods

    def running(self) -> list[str]:
        """Returns the names of the running pods that are not being deleted."""
        return sorted(
            one["metadata"]["name"]
            for one in self.pods()
            if one["status"].get("phase") == "Running" and not is_leaving(one)
        )

    def pod_of(self, node: str) -> str:
        """Returns the name of the running pod whose host name is `node`."""

        def find() -> str | None:
            return next((name for name in self.running() if name.startswith(f"{node}-")), None)

        return str(self.wait(f"a pod of {node} runs", find))

    def lines(self, event: str = "") -> list[Line]:
        """Returns the lines that the workers of all pods have printed so far, or only those of one event."""
        texts = [text for one in self.logs.followers.values() for _, text in one.lines() if text.startswith('{"event"')]
        return [line for line in (Line(**json.loads(text)) for text in texts) if event in ("", line.event)]

    def wait(self, what: str, condition: Callable[[], Any], *, timeout_seconds: float = START_SECONDS) -> Any:
        """Waits for a condition about the lines. A failure shows the ends of the logs."""

        def look() -> Any:
            self.pods()
            return condition()

        return wait_for(what, look, timeout_seconds=timeout_seconds, detail=self.describe)

    def world(self, size: int, *, besides: frozenset[Worker] = frozenset()) -> list[Line]:
        """Waits until `size` workers step together, none of them one of `besides`. Returns their lines."""

        def formed() -> list[Line] | None:
            rounds: dict[int, list[Line]] = {}
            for line in self.lines("step"):
                if worker(line) not in besides and line.world == size:
                    rounds.setdefault(line.master_port, []).append(line)
            return next((lines for lines in rounds.values() if len({line.rank for line in lines}) == size), None)

        lines: list[Line] = self.wait(f"{size} workers step together", formed)
        return lines

    def workers(self) -> frozenset[Worker]:
        """Returns the workers that have been started so far."""
        self.pods()
        return frozenset(worker(line) for line in self.lines())

    def said(self, text: str, *, besides: str = "") -> list[str]:
        """Returns the log lines that contain a text, of all pods except `besides`."""
        self.pods()
        others = [one for one in self.logs.followers.values() if one.pod != besides]
        return [line for one in others for _, line in one.lines() if text in line]

    def scale(self, nodes: int) -> None:
        """Sets the number of pods."""
        patch = json.dumps({"spec": {"parallelism": nodes, "completions": nodes}})
        self._kubernetes("patch", "job", self.name, f"--namespace={self.namespace}", "--type=merge", f"--patch={patch}")

    def end(self) -> None:
        """Ends the workers, all in the same step."""
        # The file in one pod is enough. Several pods are tried, because one may be about to end.
        commands = [shlex.join(self._kubernetes.command(*self._touch(name))) for name in self.running()]
        assert commands, f"no pod is running in which the workers can be ended\n{self.describe()}"
        run(["sh", "-c", " || ".join(commands)])

    def _touch(self, name: str) -> tuple[str, ...]:
        return ("exec", name, f"--namespace={self.namespace}", "--", "touch", UNTIL)

    def succeeded(self) -> None:
        """Waits until the Job is complete."""
        self.wait("the Job is complete", self._is_complete, timeout_seconds=PATIENCE_SECONDS)

    def _is_complete(self) -> bool:
        return holds("Complete", self._kubernetes.get("job", self.name, self.namespace))

    def describe(self) -> str:
        """Returns the ends of all logs."""
        return "\n".join(
            f"--- {one.pod}\n{one.file.read_text(errors='replace')[-3000:]}" for one in self.logs.followers.values()
        )


def torch_volume(cluster: Cluster, namespace: str) -> list[Object]:
    """Returns the claim and the volume for the nodes' packages with torch, or nothing if the image has torch."""
    if cluster.torch_packages is None:
        return []
    nodes = [one["metadata"]["name"] for one in cluster.kubernetes.list("nodes", "")]
    name = f"torch-{namespace}"
    common = {"storageClassName": "packages", "accessModes": ["ReadOnlyMany"]}
    where = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {**OF_THIS_SESSION, SCENARIO: namespace}},
        "spec": {
            **common,
            "capacity": {"storage": "10Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(cluster.torch_packages)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": where}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "torch", "namespace": namespace},
        "spec": {**common, "volumeName": name, "resources": {"requests": {"storage": "10Gi"}}},
    }
    return [volume, claim]


def mount_torch(cluster: Cluster, spec: Object) -> None:
    """Mounts the nodes' packages with torch in every container of a pod, unless the image has torch."""
    if cluster.torch_packages is None:
        return
    spec.setdefault("volumes", []).append(
        {"name": "torch", "persistentVolumeClaim": {"claimName": "torch", "readOnly": True}}
    )
    for one in spec["containers"]:
        one.setdefault("volumeMounts", []).append({"name": "torch", "mountPath": "/torch", "readOnly": True})
        one.setdefault("env", []).append({"name": "PYTHONPATH", "value": "/torch"})


def training_config(namespace: str) -> Object:
    """Returns a ConfigMap with the workers' script."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "train-script", "namespace": namespace},
        "data": {"train.py": TRAIN.read_text()},
    }


def torchrun_job(cluster: Cluster, namespace: str, *, nodes: int, nnodes: str, conf: str, gloo: bool) -> Object:
    """Returns the example's Job with another script, whose workers train until `UNTIL` exists."""
    job = example_job()
    job["metadata"]["namespace"] = namespace
    job["spec"]["completions"] = job["spec"]["parallelism"] = nodes
    job["spec"]["maxFailedIndexes"] = min(nodes, job["spec"]["maxFailedIndexes"])
    spec = job["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    one["image"] = cluster.agent_image
    torchrun = [f"--nnodes={nnodes}" if argument.startswith("--nnodes=") else argument for argument in one["args"][:-1]]
    torchrun += [f"--rdzv-conf={conf}"] if conf else []
    options = ["--called=$(POD_HOST)", "--out=/dev/stdout", f"--until={UNTIL}", *(["--gloo"] if gloo else [])]
    one["args"] = [*torchrun, "/job/train.py", *options]
    index = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
    one["env"] += [{"name": "INDEX", "valueFrom": index}, {"name": "POD_HOST", "value": "train-$(INDEX)"}]
    mount_torch(cluster, spec)
    return job
