"""Runs the rendered pods with their exact command, arguments, environment, mounts, user and probes, and with real binaries.

It implements the part of a kubelet that the chart relies on, without Kubernetes, and needs root. Each pod has a separate network
namespace and address. Each container has the user of its security context, its volumes, and a read-only root that contains only
the content of its image (no shell beside etcd). The names of Services and members are in /etc/hosts instead of DNS.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.wait import wait_for

from chart.render import Object, Objects

T = TypeVar("T")

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
NAMESPACE, DOMAIN = "lattice", "cluster.local"
CLONE_NEWNET = 0x40000000

# Mounts the folders of the container, makes everything else read-only, and becomes the container's program. Its arguments are
# the root, the user and group, then for each mount `ro|rw`, source and target, then `--` and the command.
_CONTAINER = r"""
set -eu
root=$1 user=$2 group=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    mode=$1 source=$2 target=$root$3
    shift 3
    mount --rbind "$source" "$target"
    [ "$mode" = rw ] || mount -o remount,bind,ro "$target"
done
shift
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec /usr/sbin/chroot --userspec="$user:$group" --groups="$group" "$root" "$@"
"""


def package() -> Path:
    """Returns the folder of the package `lattice_rdzv`."""
    spec = importlib.util.find_spec("lattice_rdzv")
    assert spec is not None, "the package is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def missing() -> str | None:
    """Returns why pods cannot run on this machine, or `None` if they can."""
    if os.geteuid() != 0:
        return "network namespaces and mounts need root"
    for program in ("ip", "nsenter", "unshare", "chroot"):
        if shutil.which(program, path=PATH) is None:
            return f"no program {program}"
    try:
        _run("ip", "netns", "add", f"rdzv-{os.getpid()}-try")
        _run("ip", "netns", "del", f"rdzv-{os.getpid()}-try")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    return None


class Cluster:
    """A network with pods."""

    def __init__(
        self, folder: Path, objects: Objects, etcd: Path, *, secrets: Mapping[str, Mapping[str, str]] = {}
    ) -> None:
        self.folder = folder
        self.objects = objects
        self.etcd = etcd
        self.secrets = {name: dict(data) for name, data in secrets.items()}
        self.pods: list[Pod] = []
        # Whether new pods connect to others from an address that has no name, as behind source NAT or in a service mesh.
        self.hides_sources = False
        self._prefix = f"rdzv-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        self._count = 0
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self._switch = self._namespace("switch")
        _run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "switch", "up")

    def start(self, *, count: int | None = None) -> list[Pod]:
        """Creates the workload's pods, as its controller would, and starts them at the same time."""
        workload = self.objects.workload
        for index in range(count or workload["spec"]["replicas"]):
            stateful = workload["kind"] == "StatefulSet"
            self.add(f"lattice-rdzv-{index}" if stateful else "lattice-rdzv-5d8f-x7k2p")
        for pod in self.pods:
            pod.start()
        return self.pods

    def add(self, name: str, template: Object | None = None) -> Pod:
        """Returns a new pod that is not started yet. A pod with a member's name has the member's volume."""
        self._count += 1
        pod = Pod(self, name, template or self.objects.pod, f"10.213.7.{self._count}", self._cable())
        assert not any(other.name == name and other.running for other in self.pods), f"already running: {name}"
        self.pods = [*(other for other in self.pods if other.running or not other.started), pod]
        self.write_hosts()
        return pod

    def close(self) -> None:
        """Ends all pods and removes the network."""
        for pod in self.pods:
            pod.kill()
        listed = _run("ip", "netns", "list").split()
        for name in listed:
            if name.startswith(self._prefix):
                _run("ip", "netns", "del", name)

    def write_hosts(self) -> None:
        """Writes the names and addresses of all pods into the hosts file of the containers."""
        lines = ["127.0.0.1 localhost"]
        for pod in self.pods:
            subdomain = self.objects.workload["spec"].get("serviceName") if pod.is_store else None
            if subdomain:
                lines.append(f"{pod.address} {names(f'{pod.name}.{subdomain}')}")
            lines += [f"{pod.address} {names(service)}" for service in self.services_of(pod)]
        self.hosts.write_text("\n".join(lines) + "\n")

    def services_of(self, pod: Pod) -> list[str]:
        """Returns the Services whose selector matches a pod, ready or not."""
        return [
            one["metadata"]["name"]
            for one in self.objects.all
            if one["kind"] == "Service" and one["spec"]["selector"].items() <= pod.labels.items()
        ]

    def endpoints(self, service: str) -> list[Pod]:
        """Returns the endpoints of a Service: the pods that it selects and that are ready."""
        publishes = self.objects.get("Service", service)["spec"].get("publishNotReadyAddresses", False)
        return [pod for pod in self.pods if service in self.services_of(pod) and (publishes or pod.ready())]

    def wait_ready(self, *, timeout_seconds: float = 60) -> None:
        """Waits until every pod is ready."""
        for pod in self.pods:
            pod.wait_ready(timeout_seconds=timeout_seconds)

    def config_map(self, name: str) -> dict[str, str]:
        """Returns the data of a rendered ConfigMap."""
        return dict(self.objects.get("ConfigMap", name)["data"])

    def claim(self, pod: str) -> Path:
        """Returns the folder of a member's volume, which outlives its pod."""
        return self.folder / "claims" / f"data-{pod}"

    def _namespace(self, name: str) -> str:
        full = f"{self._prefix}-{name}"
        _run("ip", "netns", "add", full)
        _run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def _cable(self) -> str:
        number = self._count
        namespace = self._namespace(str(number))
        cable = f"pod{number}"
        _run("ip", "-n", self._switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "-n", self._switch, "link", "set", cable, "master", "switch", "up")
        _run("ip", "-n", namespace, "address", "add", f"10.213.7.{number}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        # Every real pod has a default route, and etcd looks for it.
        _run("ip", "-n", namespace, "route", "add", "default", "dev", "eth0")
        if self.hides_sources:
            source = f"10.213.9.{number}"
            _run("ip", "-n", namespace, "address", "add", source, "dev", "eth0")
            _run("ip", "-n", namespace, "route", "replace", "10.213.7.0/24", "dev", "eth0", "src", source)
        return namespace


class Pod:
    """One pod. It keeps its name, address and UID when its containers are restarted. A replacement is another object."""

    def __init__(self, cluster: Cluster, name: str, template: Object, address: str, namespace: str) -> None:
        self.cluster = cluster
        self.name = name
        self.address = address
        self.uid = str(uuid.uuid4())
        self.started = False
        self.namespace = namespace
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.spec: Object = template["spec"]
        self.folder = cluster.folder / f"{name}-{self.uid[:6]}"
        self.folder.mkdir()
        self.containers = {one["name"]: Container(self, one) for one in self.spec["containers"]}

    @property
    def is_store(self) -> bool:
        """Whether this is a pod of the workload and not of a test."""
        return "lattice-rdzv/store" in self.labels

    @property
    def etcd(self) -> Container:
        """The container `etcd`."""
        return self.containers["etcd"]

    @property
    def running(self) -> bool:
        """Whether a container of this pod is running."""
        return any(container.running for container in self.containers.values())

    def start(self) -> None:
        """Starts all containers."""
        self.started = True
        for container in self.containers.values():
            container.start()

    def terminate(self) -> None:
        """Ends the pod as Kubernetes does. SIGTERM must be enough within the grace period."""
        for container in self.containers.values():
            container.terminate(self.spec["terminationGracePeriodSeconds"])

    def kill(self) -> None:
        """Sends SIGKILL to all containers."""
        for container in self.containers.values():
            container.kill()

    def ready(self) -> bool:
        """Returns whether every container's readiness probe succeeds."""
        return all(container.probe("readiness") for container in self.containers.values())

    def wait_ready(self, *, timeout_seconds: float = 60) -> None:
        """Waits until the pod is ready."""

        def ready() -> bool:
            ended = [name for name, one in self.containers.items() if not one.running]
            assert not ended, f"ended: {ended}\n{self.describe()}"
            return self.ready()

        wait_for(f"{self.name} is ready", ready, timeout_seconds=timeout_seconds, detail=self.describe)

    def describe(self) -> str:
        """Returns the ends of the pod's logs."""
        return "\n".join(f"--- {self.name}/{name}\n{one.log[-3000:]}" for name, one in self.containers.items())

    def inside(self, call: Callable[[], T]) -> T:
        """Runs a function in the pod's network and returns its result."""
        result: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with Path("/run/netns", self.namespace).open("rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(call())
            except BaseException as error:
                errors.append(error)

        # Each thread has its own namespace, so only this new thread changes it.
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return result[0]

    def get(self, path: str, port: int) -> tuple[int, str]:
        """Sends an HTTP request to the pod's address. Returns status and text."""

        def request() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://{self.address}:{port}{path}", timeout=10) as response:
                    return int(response.status), response.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return self.inside(request)

    def volume(self, name: str) -> Path:
        """Returns the folder of a volume, and creates it with its files if necessary."""
        folder = self.folder / "volumes" / name
        volume = next((one for one in self.spec.get("volumes", []) if one["name"] == name), None)
        if volume is None:
            folder = self.cluster.claim(self.name)
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if volume is None or "emptyDir" in volume:
            group = self.spec.get("securityContext", {}).get("fsGroup")
            if fresh and group is not None:
                os.chown(folder, 0, group)
                folder.chmod(0o2775)
            return folder
        files = (
            self.cluster.secrets[volume["secret"]["secretName"]]
            if "secret" in volume
            else self.cluster.config_map(volume["configMap"]["name"])
        )
        source = volume.get("secret") or volume["configMap"]
        wanted = {one["key"]: one["path"] for one in source.get("items", [])} or {key: key for key in files}
        for key, path in wanted.items():
            file = folder / path
            file.write_text(files[key])
            os.chown(file, 0, self.spec["securityContext"]["fsGroup"])
            file.chmod(source.get("defaultMode", 0o644))
        return folder


class Container:
    """One container, and its process while it is running."""

    def __init__(self, pod: Pod, spec: Object) -> None:
        self.pod = pod
        self.spec = spec
        self.ports = {one["name"]: int(one["containerPort"]) for one in spec.get("ports", [])}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = pod.folder / f"{spec['name']}.log"
        self._log.touch()
        self._root = pod.folder / f"{spec['name']}.root"

    @property
    def environment(self) -> dict[str, str]:
        """The container's variables, with references resolved and `$(NAME)` replaced."""
        out = self.service_variables
        for source in self.spec.get("envFrom", []):
            out.update(self.pod.cluster.config_map(source["configMapRef"]["name"]))
        for one in self.spec.get("env", []):
            out[one["name"]] = expand(self._value(one), out)
        return out

    @property
    def service_variables(self) -> dict[str, str]:
        """The variables of Services, unless the pod disables them. No test connects to these addresses."""
        if self.pod.spec.get("enableServiceLinks") is False:
            return {}
        out = {}
        for index, one in enumerate(self.pod.cluster.objects.all):
            if one["kind"] == "Service" and one["spec"].get("clusterIP") != "None":
                prefix = one["metadata"]["name"].upper().replace("-", "_")
                out[f"{prefix}_SERVICE_HOST"] = f"10.213.8.{index}"
        return out

    @property
    def command(self) -> list[str]:
        """The container's command line."""
        variables = self.environment
        return [expand(part, variables) for part in (*self.spec["command"], *self.spec.get("args", []))]

    @property
    def log(self) -> str:
        """The container's output."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the container's process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the container with a new root. Its volumes keep their content."""
        context = self.pod.spec["securityContext"]
        mounts = list(self._mounts())
        for _, _, target in mounts:
            place = self._root / target.lstrip("/")
            if target == "/etc/hosts":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            elif not target.startswith(("/usr/local/", "/usr/lib")) or not (self._root / "usr").is_mount():
                place.mkdir(parents=True, exist_ok=True)
        (self._root / "proc").mkdir(exist_ok=True)
        for link in ("lib", "lib64", "bin"):
            with contextlib.suppress(FileExistsError):
                (self._root / link).symlink_to(f"usr/{link}")
        variables = {"PATH": self._path, **self.environment}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.pod.namespace}"),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *("/bin/sh", "-c", _CONTAINER, "container"),
                    *(str(self._root), str(context["runAsUser"]), str(context["runAsGroup"])),
                    *(part for mount in mounts for part in mount),
                    "--",
                    *self.command,
                ],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def terminate(self, grace_seconds: float) -> None:
        """Sends SIGTERM to the first process and waits for its end."""
        if self.running and self._process is not None:
            os.kill(self._first(), signal.SIGTERM)
            self._process.wait(grace_seconds)

    def kill(self) -> None:
        """Sends SIGKILL to the first process."""
        if self._process is not None:
            try:
                os.kill(self._first(), signal.SIGKILL)
            except (ProcessLookupError, FileNotFoundError, IndexError):
                self._process.kill()
            # The other processes end with the first one. After this, ports and files are free.
            self._process.wait()

    def probe(self, kind: str) -> bool:
        """Returns whether the probe of this kind succeeds. A probe that is not configured always succeeds."""
        probe = self.spec.get(f"{kind}Probe")
        if probe is None:
            return True
        if not self.running:
            return False
        try:
            status, _ = self.pod.get(probe["httpGet"]["path"], self.ports[probe["httpGet"]["port"]])
        except (OSError, http.client.HTTPException):
            return False
        return 200 <= status < 400

    def execute(self, *command: str, variables: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        """Runs a program as `kubectl exec` does: in the container's root and network, and with its variables. etcdctl may take as
        long as a machine under load needs."""
        patience = {"ETCDCTL_COMMAND_TIMEOUT": "20s", "ETCDCTL_DIAL_TIMEOUT": "10s"}
        return subprocess.run(
            ["nsenter", "--target", str(self._first()), "--mount", "--net", "--root", "--wd=/", "--", *command],
            env={"PATH": self._path, **patience, **self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def _first(self) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    @property
    def _has_package(self) -> bool:
        """Whether the image has the package `lattice-rdzv`. The container then has the Python of these tests."""
        return "lattice-rdzv:" in self.spec["image"]

    @property
    def _path(self) -> str:
        return f"{sys.prefix}/bin:{PATH}" if self._has_package else PATH

    def _mounts(self) -> Iterator[tuple[str, str, str]]:
        image = self.spec["image"]
        yield "ro", str(self.pod.cluster.hosts), "/etc/hosts"
        if self.spec["command"][0] in ("etcd", "etcdctl"):
            # Only the two programs, and the C library, which Debian's etcd needs.
            yield "ro", str(self.pod.cluster.etcd), "/usr/local/bin"
            yield "ro", "/usr/lib", "/usr/lib"
            yield "ro", "/usr/lib64", "/usr/lib64"
        else:
            assert image, "the container must have an image"
            yield "ro", "/usr", "/usr"
            if not Path("/usr/bin/python3").exists():
                yield "ro", sys.base_prefix, "/usr/local"
            if self._has_package:
                # The virtual environment, its Python, and the sources, which are needed if the package is installed in place.
                for folder in {sys.prefix, sys.base_prefix, str(package().parent)}:
                    if not folder.startswith("/usr"):
                        yield "ro", folder, folder
        for mount in self.spec.get("volumeMounts", []):
            mode = "ro" if mount.get("readOnly") else "rw"
            yield mode, str(self.pod.volume(mount["name"])), mount["mountPath"]

    def _value(self, one: Object) -> str:
        if "value" in one:
            return str(one["value"])
        source = one["valueFrom"]
        if "secretKeyRef" in source:
            return self.pod.cluster.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        fields = {
            "metadata.name": self.pod.name,
            "metadata.uid": self.pod.uid,
            "metadata.namespace": NAMESPACE,
            "status.podIP": self.pod.address,
        }
        return fields[source["fieldRef"]["fieldPath"]]


def names(service: str) -> str:
    """Returns both DNS names of a Service."""
    return f"{service}.{NAMESPACE}.svc.{DOMAIN} {service}.{NAMESPACE}.svc"


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces `$(NAME)` as Kubernetes does. References to unknown variables remain."""
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda match: variables.get(match[1], match[0]), text)


def members(pod: Pod) -> list[dict[str, Any]]:
    """Returns the members that a member's etcdctl lists."""
    done = pod.etcd.execute("etcdctl", "member", "list", "--write-out=json")
    assert done.returncode == 0, done.stderr + pod.describe()
    return list(json.loads(done.stdout)["members"])


def header(pod: Pod) -> dict[str, Any]:
    """Returns the header of a response, with cluster ID, member ID and revision."""
    done = pod.etcd.execute("etcdctl", "get", "none", "--write-out=json")
    assert done.returncode == 0, done.stderr + pod.describe()
    return dict(json.loads(done.stdout)["header"])


def open_port(pod: Pod, port: int) -> bool:
    """Returns whether a process listens on a port of the pod."""

    def connect() -> bool:
        try:
            socket.create_connection((pod.address, port), timeout=5).close()
        except OSError:
            return False
        return True

    return pod.inside(connect)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": PATH}).stdout
