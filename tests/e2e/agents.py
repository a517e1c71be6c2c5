"""Jobs of real torchrun agents in pods, and what their workers said."""

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
from harness.wait import wait_for

from e2e.cluster import OF_THIS_SESSION, ROOT, Cluster
from e2e.kubernetes import PATIENCE_SECONDS, Kubernetes, Object, holds, is_leaving, run

# Importing torch in an agent and its worker takes this long when several pods do it at once on two cores.
START_SECONDS = 180.0
UNTIL = "/tmp/until"
# The label that says for which story a namespace was made, and for which namespace a volume.
STORY = "lattice-rdzv-story"
EXAMPLE = ROOT / "examples" / "job" / "job.yaml"


def example_job() -> Object:
    """The Job that people copy: every agent of these stories is one of its pods, with what a story has to change."""
    return dict(yaml.safe_load(EXAMPLE.read_text()))


def forget_id(container: Object) -> None:
    """Takes the Job's uid out of what an agent is told."""
    told = [variable for variable in container["env"] if not variable["name"].startswith("LATTICE_RDZV_")]
    container["env"] = told


def idle_pod(image: str, name: str, namespace: str) -> Object:
    """One of its pods that waits for commands, and is gone at once when it is deleted."""
    spec = example_job()["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    one["image"], one["command"], one["args"] = image, ["sleep", "infinity"], []
    # No Job is behind it whose uid it could have.
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
        """Doctor's findings by what was looked at; it ends with 1 where one of them failed."""
        findings = json.loads(self("sh", "-c", "lattice-rdzv doctor --json || true"))
        return {one["check"]: one for one in findings}

    def finds(self) -> str:
        """The endpoint of the service that `doctor` finds there, which has to be well."""
        findings = self.doctor()
        assert findings["permission to write"]["status"] == "ok", findings
        return str(findings["service"]["found"]).removesuffix(" responds")

    def environment(self) -> dict[str, str]:
        """The variables that its processes start with."""
        return dict(line.split("=", 1) for line in self("env").splitlines() if "=" in line)


@dataclass
class Follower:
    """A pod's log as it grows, kept after the pod is gone."""

    pod: str
    file: Path
    process: subprocess.Popen[bytes]

    def lines(self) -> list[tuple[str, str]]:
        """When and what."""
        split = (line.partition(" ") for line in self.file.read_text(errors="replace").splitlines())
        return [(at, text) for at, _, text in split]


class Logs:
    """The logs of a namespace's pods that were asked to be followed."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, folder: Path) -> None:
        self._kubernetes = kubernetes
        self.namespace = namespace
        self._folder = folder
        self.followers: dict[str, Follower] = {}

    def follow(self, pods: list[Object]) -> None:
        """Follows each of them that has a container running or ended, once."""
        for one in pods:
            uid = one["metadata"]["uid"]
            statuses = one.get("status", {}).get("containerStatuses", [])
            if uid in self.followers or not statuses or "waiting" in statuses[0]["state"]:
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
        """Ends the followers; what they wrote stays."""
        for one in self.followers.values():
            one.process.kill()
            one.process.wait()


Worker = tuple[str, int, int]


def worker(line: Line) -> Worker:
    """By what a worker is told from every other. Its round's port alone may be that of another round, in another pod."""
    return line.node, line.pid, line.master_port


class Job:
    """An Indexed Job of torchrun agents, which train until they are told to end."""

    def __init__(self, kubernetes: Kubernetes, logs: Logs, manifest: Object) -> None:
        self._kubernetes = kubernetes
        self.logs = logs
        self.namespace: str = manifest["metadata"]["namespace"]
        self.name: str = manifest["metadata"]["name"]
        self._kubernetes.apply(manifest)

    def pods(self) -> list[Object]:
        """The Job's pods, whose logs are followed from now on."""
        pods = self._kubernetes.list("pods", self.namespace, selector=f"job-name={self.name}")
        self.logs.follow(pods)
        return pods

    def running(self) -> list[str]:
        """The names of the pods that run and are not on their way out."""
        return sorted(
            one["metadata"]["name"]
            for one in self.pods()
            if one["status"].get("phase") == "Running" and not is_leaving(one)
        )

    def pod_of(self, node: str) -> str:
        """The name of the running pod whose host name is `node`."""

        def find() -> str | None:
            return next((name for name in self.running() if name.startswith(f"{node}-")), None)

        return str(self.wait(f"a pod of {node} runs", find))

    def lines(self, event: str = "") -> list[Line]:
        """What the workers of all pods said so far; of one event if it is named."""
        told = [text for one in self.logs.followers.values() for _, text in one.lines() if text.startswith('{"event"')]
        return [line for line in (Line(**json.loads(text)) for text in told) if event in ("", line.event)]

    def wait(self, what: str, condition: Callable[[], Any], *, timeout_seconds: float = START_SECONDS) -> Any:
        """Waits for a condition about the lines; a failure shows the ends of the logs."""

        def look() -> Any:
            self.pods()
            return condition()

        return wait_for(what, look, timeout_seconds=timeout_seconds, detail=self.describe, every_seconds=0.5)

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
        """Those that were started so far."""
        self.pods()
        return frozenset(worker(line) for line in self.lines())

    def said(self, text: str, *, besides: str = "") -> list[str]:
        """The log lines with a text, of all pods but one."""
        self.pods()
        others = [one for one in self.logs.followers.values() if one.pod != besides]
        return [line for one in others for _, line in one.lines() if text in line]

    def scale(self, nodes: int) -> None:
        """Asks for another number of pods."""
        patch = json.dumps({"spec": {"parallelism": nodes, "completions": nodes}})
        self._kubernetes("patch", "job", self.name, f"--namespace={self.namespace}", "--type=merge", f"--patch={patch}")

    def end(self) -> None:
        """Tells the workers to end, all in the same step."""
        # Any of them will do, and one may be going.
        tell = [shlex.join(self._kubernetes.command(*self._tell(name))) for name in self.running()]
        assert tell, f"no pod runs that could be told to end\n{self.describe()}"
        run(["sh", "-c", " || ".join(tell)])

    def _tell(self, name: str) -> tuple[str, ...]:
        return ("exec", name, f"--namespace={self.namespace}", "--", "touch", UNTIL)

    def succeeded(self) -> None:
        """Waits until the Job is complete."""
        self.wait("the Job is complete", self._is_complete, timeout_seconds=PATIENCE_SECONDS)

    def _is_complete(self) -> bool:
        return holds("Complete", self._kubernetes.get("job", self.name, self.namespace))

    def describe(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {one.pod}\n{one.file.read_text(errors='replace')[-3000:]}" for one in self.logs.followers.values()
        )


def torch_volume(cluster: Cluster, namespace: str) -> list[Object]:
    """A claim on the packages that the nodes lend, and the volume behind it; nothing where the image has torch."""
    if cluster.torch_packages is None:
        return []
    nodes = [one["metadata"]["name"] for one in cluster.kubernetes.list("nodes", "")]
    name = f"torch-{namespace}"
    common = {"storageClassName": "lent", "accessModes": ["ReadOnlyMany"]}
    where = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {**OF_THIS_SESSION, STORY: namespace}},
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


def lend_torch(cluster: Cluster, spec: Object) -> None:
    """Gives every container of a pod the packages that the nodes lend; nothing where the image has torch."""
    if cluster.torch_packages is None:
        return
    spec.setdefault("volumes", []).append(
        {"name": "torch", "persistentVolumeClaim": {"claimName": "torch", "readOnly": True}}
    )
    for one in spec["containers"]:
        one.setdefault("volumeMounts", []).append({"name": "torch", "mountPath": "/torch", "readOnly": True})
        one.setdefault("env", []).append({"name": "PYTHONPATH", "value": "/torch"})


def training_config(namespace: str) -> Object:
    """The workers' script as a ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "train-script", "namespace": namespace},
        "data": {"train.py": TRAIN.read_text()},
    }


def torchrun_job(cluster: Cluster, namespace: str, *, nodes: int, nnodes: str, conf: str) -> Object:
    """The example's Job with another script, whose workers train until they are told to end."""
    job = example_job()
    job["metadata"]["namespace"] = namespace
    job["spec"]["completions"] = job["spec"]["parallelism"] = nodes
    job["spec"]["maxFailedIndexes"] = min(nodes, job["spec"]["maxFailedIndexes"])
    spec = job["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    one["image"] = cluster.agent_image
    torchrun = [f"--nnodes={nnodes}" if argument.startswith("--nnodes=") else argument for argument in one["args"][:-1]]
    torchrun += [f"--rdzv-conf={conf}"] if conf else []
    told = ["--called=$(POD_HOST)", "--out=/dev/stdout", f"--until={UNTIL}"]
    one["args"] = [*torchrun, "/job/train.py", *told]
    index = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
    one["env"] += [{"name": "INDEX", "valueFrom": index}, {"name": "POD_HOST", "value": "train-$(INDEX)"}]
    lend_torch(cluster, spec)
    return job
