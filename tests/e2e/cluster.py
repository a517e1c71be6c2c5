"""The cluster of the scenarios: the one of `KUBECONFIG`, or one that kind creates in containers."""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from e2e.kubernetes import Failed, Kubernetes, Object, find_kubectl, run

ROOT = Path(__file__).resolve().parents[2]
NODES = 3
AGENT_IMAGE = "localhost/lattice-rdzv-agent:e2e"
BASE_IMAGE = "localhost/lattice-rdzv-agent:base"
# The label of the namespaces of a session, and of all objects that it creates outside of namespaces. Two sessions on one
# cluster therefore do not delete each other's objects.
OF_THIS_SESSION = {"lattice-rdzv-session": uuid.uuid4().hex[:8]}
IMAGE_FOLDER = Path(__file__).parent / "image"
# The version of torch in the image, if no virtual environment provides torch.
TORCH_IN_IMAGE = "2.15"
FAMILIES = ("ipv4", "ipv6", "dual")


class Cluster(ABC):
    """A cluster of three nodes, and the faults that the scenarios inject into it."""

    kubernetes: Kubernetes
    # The name of the agents' image in this cluster.
    agent_image = AGENT_IMAGE
    # The folder on the nodes with the packages of a Python 3.11 that has torch, if the image has no torch.
    torch_packages: Path | None = None
    # Why nodes cannot be disconnected and processes cannot be killed from outside; empty if they can.
    no_faults: str = "that needs the machine that the nodes run on"
    # The address family of the pods.
    family: str = "ipv4"

    @abstractmethod
    def describe(self) -> str:
        """Returns which cluster this is."""

    @abstractmethod
    def provide(self) -> None:
        """Makes the agents' image, with the wheel in dist/, available on every node."""

    def provide_etcd(self, tag: str) -> None:  # noqa: B027 - most clusters pull it
        """Makes `quay.io/coreos/etcd:TAG` available on every node if the nodes cannot pull it."""

    def cut_off(self, node: str) -> None:
        """Disconnects a node from the network."""
        raise NotImplementedError(self.no_faults)

    def reconnect(self, node: str) -> None:
        """Connects a node to the network again."""
        raise NotImplementedError(self.no_faults)

    def pause(self, node: str) -> None:
        """Freezes every process of a node. No process ends, and no connection is closed."""
        raise NotImplementedError(self.no_faults)

    def resume(self, node: str) -> None:
        """Lets the processes of a paused node continue."""
        raise NotImplementedError(self.no_faults)

    def stop(self, node: str) -> None:
        """Ends a node's kubelet and containerd."""
        raise NotImplementedError(self.no_faults)

    def start(self, node: str) -> None:
        """Starts a node's kubelet and containerd again."""
        raise NotImplementedError(self.no_faults)

    def kill_container(self, node: str, container_id: str) -> None:
        """Sends SIGKILL to every process of a container at once, as the kernel does when memory runs out."""
        raise NotImplementedError(self.no_faults)


class Given(Cluster):
    """A user's cluster. It pulls its images, so they must be in a registry that it can reach."""

    def __init__(self, kubectl: Path, folder: Path, image: str) -> None:
        # The current context when the session began. KUBECONFIG may be a list of files.
        chosen = run([str(kubectl), "config", "view", "--raw", "--flatten", "--minify"])
        kubeconfig = folder / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(chosen)
        self.kubernetes = Kubernetes(kubectl, kubeconfig)
        self.agent_image = image

    def describe(self) -> str:
        return f"the one of KUBECONFIG ({self.kubernetes('config', 'current-context').strip()})"

    def provide(self) -> None:
        """Pulls the image of LATTICE_E2E_IMAGE, because that takes longer than a scenario waits for a pod."""
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
    """Nodes in containers that kind creates with Docker, or with the engine of `KIND_EXPERIMENTAL_PROVIDER`."""

    no_faults = ""

    def __init__(self, kubectl: Path, folder: Path) -> None:
        self.engine = _engine()
        self.family = os.environ.get("LATTICE_E2E_FAMILY") or "ipv4"
        assert self.family in FAMILIES, f"LATTICE_E2E_FAMILY must be one of {FAMILIES}, but is `{self.family}`"
        self.name = "lattice-rdzv-e2e" + ("" if self.family == "ipv4" else f"-{self.family}")
        self.keep = os.environ.get("LATTICE_E2E_KEEP") == "1"
        self.kubernetes = Kubernetes(kubectl, folder / "kubeconfig")
        packages = os.environ.get("LATTICE_E2E_TORCH")
        self.torch_packages = Path(packages) if packages else None

    def create(self) -> None:
        """Creates the nodes. With `LATTICE_E2E_KEEP=1`, reuses those of an earlier session."""
        if self.name in run(["kind", "get", "clusters"]).split():
            if not self.keep:
                delete = f"kind delete cluster --name {self.name}"
                raise NoCluster(f"there is a kind cluster `{self.name}` already: {delete}, or set LATTICE_E2E_KEEP=1")
            run(["kind", "export", "kubeconfig", f"--name={self.name}", f"--kubeconfig={self.kubernetes.kubeconfig}"])
            return
        config = self.kubernetes.kubeconfig.with_name("kind.yaml")
        config.write_text(yaml.safe_dump(self._config()))
        options = [f"--name={self.name}", f"--config={config}", f"--kubeconfig={self.kubernetes.kubeconfig}"]
        if image := os.environ.get("KIND_NODE_IMAGE"):
            options.append(f"--image={image}")
        try:
            run(["kind", "create", "cluster", *options], timeout_seconds=600)
        except BaseException:
            # An incomplete cluster is deleted even if clusters are to be kept.
            self._delete()
            raise

    def _config(self) -> Object:
        node: Object = {}
        if self.torch_packages:
            where = str(self.torch_packages)
            node["extraMounts"] = [{"hostPath": where, "containerPath": where, "readOnly": True}]
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {"ipFamily": self.family},
            "nodes": [{"role": "control-plane", **node}, *({"role": "worker", **node} for _ in range(NODES))],
        }

    def describe(self) -> str:
        version = run(["kind", "version"]).split()[1]
        return f"`{self.name}`, created by kind {version} with {self.engine}, {self.family}"

    def provide(self) -> None:
        """Builds the agents' image with the wheel in dist/. If there is no wheel, a stage of another image builds one first."""
        if not list((ROOT / "dist").glob("*.whl")):
            wheel = [
                "build",
                f"--file={IMAGE_FOLDER / 'wheel.Dockerfile'}",
                f"--output=type=local,dest={ROOT / 'dist'}",
            ]
            run([self.engine, *wheel, str(ROOT)], timeout_seconds=3600)
        run([str(ROOT / "scripts" / "image"), BASE_IMAGE], environment={"BUILDER": self.engine}, timeout_seconds=900)
        build_arguments = {"BASE": BASE_IMAGE}
        if self.torch_packages is None:
            build_arguments["TORCH"] = TORCH_IN_IMAGE
            if index := os.environ.get("TORCH_INDEX"):
                build_arguments["TORCH_INDEX"] = index
        arguments = [f"--build-arg={name}={value}" for name, value in build_arguments.items()]
        run([self.engine, "build", f"--tag={AGENT_IMAGE}", *arguments, str(IMAGE_FOLDER)], timeout_seconds=1800)
        self._load(AGENT_IMAGE)
        # The nodes have copies of the images.
        run([self.engine, "rmi", AGENT_IMAGE, BASE_IMAGE])

    def provide_etcd(self, tag: str) -> None:
        """Loads the image if the engine has it. Nodes pull every other image."""
        image = f"quay.io/coreos/etcd:{tag}"
        try:
            run([self.engine, "image", "inspect", image])
        except Failed:
            return
        self._load(image)

    def _load(self, image: str) -> None:
        # Not `kind load docker-image`, which works only with Docker.
        with TemporaryDirectory() as folder:
            archive = f"{folder}/image.tar"
            run([self.engine, "save", f"--output={archive}", image])
            run(["kind", "load", "image-archive", archive, f"--name={self.name}"], timeout_seconds=900)

    def cut_off(self, node: str) -> None:
        run([self.engine, "network", "disconnect", self._network(), node])

    def reconnect(self, node: str) -> None:
        run([self.engine, "network", "connect", self._network(), node])

    def _network(self) -> str:
        return os.environ.get("KIND_EXPERIMENTAL_DOCKER_NETWORK") or "kind"

    def pause(self, node: str) -> None:
        run([self.engine, "pause", node])

    def resume(self, node: str) -> None:
        run([self.engine, "unpause", node])

    def stop(self, node: str) -> None:
        self._inside(node, "systemctl stop kubelet containerd")

    def start(self, node: str) -> None:
        self._inside(node, "systemctl start containerd kubelet")

    def kill_container(self, node: str, container_id: str) -> None:
        name = container_id.rpartition("/")[2]
        # A node sees the processes of its containers even if this machine does not see the processes of the node.
        find = f"grep --files-with-matches --no-messages {name} /proc/[0-9]*/cgroup | cut -d/ -f3"
        # When the first process of a container ends, all its processes end, so some may end before `kill` reaches them.
        self._inside(node, f'victims=$({find}); [ -n "$victims" ] || exit 1; kill -KILL $victims || true')

    def _inside(self, node: str, script: str) -> str:
        return run([self.engine, "exec", node, "sh", "-c", script])

    def delete(self) -> None:
        """Deletes the cluster, unless it is kept, and checks that none of its containers is left."""
        if not self.keep:
            self._delete()

    def _delete(self) -> None:
        run(["kind", "delete", "cluster", f"--name={self.name}"])
        label = f"--filter=label=io.x-k8s.kind.cluster={self.name}"
        left = run([self.engine, "ps", "--all", "--quiet", label]).split()
        assert left == [], f"containers are left: {left}"


class NoCluster(Exception):
    """No cluster is available. The message has the reason."""


@contextmanager
def choose(folder: Path) -> Iterator[tuple[Cluster, list[str]]]:
    """Yields the user's cluster or else one of kind, and why the user's cluster is not used.

    Raises:
        NoCluster: There is neither of them. The message has the reasons.
    """
    reasons: list[str] = []
    kubectl = find_kubectl()
    given, image = os.environ.get("KUBECONFIG"), os.environ.get("LATTICE_E2E_IMAGE")
    if given and kubectl and image:
        yield Given(kubectl, folder, image), reasons
        return
    reasons.append(_missing(("KUBECONFIG is not set", given), ("LATTICE_E2E_IMAGE names no image with torch", image)))
    engine = _engine()
    has_kind, has_engine = shutil.which("kind"), shutil.which(engine)
    if not (has_kind and has_engine and kubectl):
        reasons.append(_missing(("kind is not on the PATH", has_kind), (f"there is no {engine}", has_engine)))
        raise NoCluster("; ".join(reasons))
    cluster = Kind(kubectl, folder)
    # Not inside `try`, because an existing cluster of this name must not be deleted.
    cluster.create()
    try:
        yield cluster, reasons
    finally:
        cluster.delete()


def _engine() -> str:
    return os.environ.get("KIND_EXPERIMENTAL_PROVIDER") or "docker"


def _missing(*requirements: tuple[str, object]) -> str:
    return ", ".join(reason for reason, found in requirements if not found) or "kubectl is not on the PATH"


def _on_every_node(image: str, namespace: str) -> Object:
    """Returns a DaemonSet that runs an idle pod of the image on every node."""
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
