"""The cluster that the stories run on: the one of `KUBECONFIG`, one made by kind, or one made by a script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from e2e.kubernetes import Kubernetes, Object, find_kubectl, run

ROOT = Path(__file__).resolve().parents[2]
NODES = 3
AGENT_IMAGE = "localhost/lattice-rdzv-agent:e2e"
BASE_IMAGE = "localhost/lattice-rdzv-agent:base"
# What a session makes outside of namespaces, and these, has this label: two on one cluster do not delete each other's.
OF_THIS_SESSION = {"lattice-rdzv-session": uuid.uuid4().hex[:8]}
IMAGE_FOLDER = Path(__file__).parent / "image"
# What a cluster of somebody else's, and kind, have to get torch from: the image.
TORCH_IN_IMAGE = "2.15"


class Cluster(ABC):
    """A cluster of three nodes, and what the stories need to be done to it."""

    kubernetes: Kubernetes
    # What the agents' image is called there.
    agent_image = AGENT_IMAGE
    # Where nodes keep the packages of a Python 3.11 with torch, where the image has none.
    torch_packages: Path | None = None
    # Why nodes cannot be cut off and processes cannot be killed from outside; empty where they can.
    no_faults: str = "that needs the machine that the nodes run on"

    @abstractmethod
    def describe(self) -> str:
        """Which one it is."""

    @abstractmethod
    def provide(self) -> None:
        """Has the agents' image on every node, of the wheel in dist/."""

    def provide_etcd(self, tag: str) -> None:  # noqa: B027 - most clusters pull it
        """Has `quay.io/coreos/etcd:TAG` on every node, where it cannot be pulled."""

    def fresh_volumes(self) -> None:  # noqa: B027 - most clusters have a provisioner, and nothing is to be done
        """Has empty volumes of the default class."""

    def cut_off(self, node: str) -> None:
        """Takes a node's network away."""
        raise NotImplementedError(self.no_faults)

    def reconnect(self, node: str) -> None:
        """Gives it back."""
        raise NotImplementedError(self.no_faults)

    def stop(self, node: str) -> None:
        """Ends a node's kubelet and containerd."""
        raise NotImplementedError(self.no_faults)

    def start(self, node: str) -> None:
        """Starts them again."""
        raise NotImplementedError(self.no_faults)

    def kill_container(self, container_id: str) -> None:
        """SIGKILL to every process of a container at once, as the kernel does when memory runs out."""
        raise NotImplementedError(self.no_faults)


class Given(Cluster):
    """Somebody's cluster: its images are pulled, so they have to be where it can pull them."""

    def __init__(self, kubectl: Path, folder: Path, image: str) -> None:
        # The present context of what may be a list of files, as it was when the session began.
        chosen = run([str(kubectl), "config", "view", "--raw", "--flatten", "--minify"])
        kubeconfig = folder / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(chosen)
        self.kubernetes = Kubernetes(kubectl, kubeconfig)
        self.agent_image = image

    def describe(self) -> str:
        return f"the one of KUBECONFIG ({self.kubernetes('config', 'current-context').strip()})"

    def provide(self) -> None:
        """Pulls what LATTICE_E2E_IMAGE names: that takes longer than a story waits for a pod."""
        classes = self.kubernetes.list("storageclasses", "")
        is_default = "storageclass.kubernetes.io/is-default-class"
        if not any(one["metadata"].get("annotations", {}).get(is_default) == "true" for one in classes):
            raise NoCluster(f"{self.describe()} has no default StorageClass, which three members with volumes need")
        name = f"images-{uuid.uuid4().hex[:6]}"
        metadata = {"name": name, "labels": OF_THIS_SESSION}
        self.kubernetes.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        try:
            self.kubernetes.apply(_on_every_node(self.agent_image, name))
            self.kubernetes.roll_out("daemonset/images", name, timeout_seconds=1800)
        finally:
            self.kubernetes("delete", "namespace", name, "--timeout=120s")


class Kind(Cluster):
    """Nodes in Docker's containers."""

    name = "lattice-rdzv-e2e"

    def __init__(self, kubectl: Path, folder: Path) -> None:
        config = folder / "kind.yaml"
        nodes = [{"role": "control-plane"}, *({"role": "worker"} for _ in range(NODES))]
        config.write_text(yaml.safe_dump({"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}))
        self._config = config
        self.kubernetes = Kubernetes(kubectl, folder / "kubeconfig")

    def create(self) -> None:
        """Makes the containers."""
        where = [f"--config={self._config}", f"--kubeconfig={self.kubernetes.kubeconfig}"]
        run(["kind", "create", "cluster", f"--name={self.name}", *where], timeout_seconds=600)

    def describe(self) -> str:
        return f"one made by {run(['kind', 'version']).strip()}"

    def provide(self) -> None:
        run([str(ROOT / "scripts" / "image"), AGENT_IMAGE], environment={"BUILDER": "docker"}, timeout_seconds=900)
        index = os.environ.get("TORCH_INDEX", "")
        given = {"BASE": AGENT_IMAGE, "TORCH": TORCH_IN_IMAGE, "TORCH_INDEX": index}
        arguments = [f"--build-arg={name}={value}" for name, value in given.items()]
        run(["docker", "build", f"--tag={AGENT_IMAGE}", *arguments, str(IMAGE_FOLDER)], timeout_seconds=1800)
        run(["kind", "load", "docker-image", AGENT_IMAGE, f"--name={self.name}"], timeout_seconds=900)

    def delete(self) -> None:
        run(["kind", "delete", "cluster", f"--name={self.name}"])


class Scripted(Cluster):
    """Nodes in network namespaces of this machine, made by the script that `LATTICE_CLUSTER_SCRIPT` names."""

    no_faults = ""

    def __init__(self, script: Path, torch_packages: Path) -> None:
        self._script = script
        self.torch_packages = torch_packages
        self._own = True

    def create(self) -> None:
        """Makes the nodes, unless they are up already."""
        self._own = not self._answers()
        if self._own:
            try:
                self.do("up", str(NODES))
            except BaseException:
                # Of a cluster that is half up nothing stays either.
                self.do("down")
                raise
        kubectl = find_kubectl(_scripts_programs())
        assert kubectl is not None, "the cluster's script leaves a kubectl"
        self.kubernetes = Kubernetes(kubectl, self._kubeconfig())

    def describe(self) -> str:
        return f"{'one' if self._own else 'the one that was up already'} made by {self._script.name}"

    def do(self, *arguments: str, timeout_seconds: float = 1800) -> str:
        """Calls the script."""
        return run([str(self._script), *arguments], timeout_seconds=timeout_seconds)

    def provide(self) -> None:
        self.do("base-image")
        options = ["--isolation", "chroot", "--network", "host"]
        run([str(ROOT / "scripts" / "image"), BASE_IMAGE, *options], environment={"BUILDER": "buildah"})
        self.do("build-image", AGENT_IMAGE, str(IMAGE_FOLDER), f"--build-arg=BASE={BASE_IMAGE}")
        # The nodes have what they need of them.
        run(["buildah", "rmi", AGENT_IMAGE, BASE_IMAGE])

    def provide_etcd(self, tag: str) -> None:
        self.do("etcd-image", tag)

    def fresh_volumes(self) -> None:
        self.do("volumes")

    def cut_off(self, node: str) -> None:
        run(["ip", "-n", "lattice-net", "link", "set", f"cable{_number(node)}", "down"])

    def reconnect(self, node: str) -> None:
        run(["ip", "-n", "lattice-net", "link", "set", f"cable{_number(node)}", "up"])

    def stop(self, node: str) -> None:
        self.do("node-stop", _number(node))

    def start(self, node: str) -> None:
        self.do("node-start", _number(node))

    def kill_container(self, container_id: str) -> None:
        name = container_id.rpartition("/")[2]
        victims = [int(one.parent.name) for one in Path("/proc").glob("[0-9]*/cgroup") if name in _read(one)]
        assert victims, f"no process of container {name} on this machine"
        for victim in victims:
            # The end of a container's first process is the end of all.
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    def delete(self) -> None:
        """Ends the cluster, if it is this session's own, and sees that nothing of it is left."""
        if not self._own:
            return
        folder = self._kubeconfig().parent
        self.do("down")
        spaces = run(["ip", "netns", "list"])
        assert "lattice-" not in spaces, f"network namespaces are left behind: {spaces}"
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line]
        assert mounts == [], f"mounts are left behind: {mounts}"
        assert not folder.exists(), f"{folder} is left behind: {list(folder.iterdir())}"
        processes = [one for one in Path("/proc").glob("[0-9]*/cmdline") if f"{folder}/" in _read(one)]
        assert processes == [], f"processes are left behind: {[_read(one) for one in processes]}"

    def _kubeconfig(self) -> Path:
        return Path(self.do("kubeconfig").strip())

    def _answers(self) -> bool:
        kubectl = find_kubectl(_scripts_programs())
        try:
            kubeconfig = self._kubeconfig()
        except Exception:
            return False
        if kubectl is None or not kubeconfig.exists():
            return False
        ready = [str(kubectl), f"--kubeconfig={kubeconfig}", "get", "--raw=/readyz", "--request-timeout=3s"]
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0


class NoCluster(Exception):
    """There is none, and why."""


@contextmanager
def choose(folder: Path) -> Iterator[tuple[Cluster, list[str]]]:
    """The first of the three that is there, and why none before it is; `NoCluster` says why none at all is."""
    lacks: list[str] = []
    kubectl = find_kubectl()
    given, image = os.environ.get("KUBECONFIG"), os.environ.get("LATTICE_E2E_IMAGE")
    if given and kubectl and image:
        yield Given(kubectl, folder, image), lacks
        return
    lacks.append(_lacks(("KUBECONFIG is not set", given), ("LATTICE_E2E_IMAGE names no image with torch", image)))
    has_kind, has_docker = shutil.which("kind"), shutil.which("docker")
    if has_kind and has_docker and kubectl:
        yield from _until_deleted(Kind(kubectl, folder), lacks)
        return
    lacks.append(_lacks(("kind is not on the PATH", has_kind), ("there is no docker", has_docker)))
    script, packages = os.environ.get("LATTICE_CLUSTER_SCRIPT"), os.environ.get("LATTICE_E2E_TORCH")
    is_root = os.geteuid() == 0
    if script and packages and is_root:
        yield from _until_deleted(Scripted(Path(script).resolve(), Path(packages)), lacks)
        return
    no_packages = "LATTICE_E2E_TORCH names no packages of a Python 3.11 with torch"
    no_root = "network namespaces need root"
    lacks.append(_lacks(("LATTICE_CLUSTER_SCRIPT is not set", script), (no_packages, packages), (no_root, is_root)))
    raise NoCluster("; ".join(lacks))


def _until_deleted(cluster: Kind | Scripted, lacks: list[str]) -> Iterator[tuple[Cluster, list[str]]]:
    # Not within: one of this name that is there already is somebody's.
    cluster.create()
    try:
        yield cluster, lacks
    finally:
        cluster.delete()


def _lacks(*looked_at: tuple[str, object]) -> str:
    return ", ".join(reason for reason, found in looked_at if not found) or "kubectl is not on the PATH"


def _on_every_node(image: str, namespace: str) -> Object:
    """A pod of the image on every node, which does nothing."""
    labels = {"app": "images"}
    container = {"name": "image", "image": image, "command": ["sleep", "infinity"]}
    pod = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    spec = {"selector": {"matchLabels": labels}, "template": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "images", "namespace": namespace},
        "spec": spec,
    }


def _scripts_programs() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LATTICE_CLUSTER_CACHE") or Path(cache) / "lattice-cluster") / "bin"


def _number(node: str) -> str:
    return node.rpartition("-")[2]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""  # it ended between two looks
