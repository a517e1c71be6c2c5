"""A store of three members, and a Job that trains on it with default settings while things happen to them."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterator

from chart.render import MEMBERS
from harness.wait import wait_for

from e2e.agents import Job
from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob
from e2e.kubernetes import Failed, Object, is_ready, takes_pods

NAMES = ("lattice-rdzv-0", "lattice-rdzv-1", "lattice-rdzv-2")


_ESTABLISHED = "01"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def established(connections: str, port: int) -> set[Address]:
    """The remote addresses of the established connections to a port, of lines of /proc/net/tcp and tcp6: see proc(5)."""
    fields = [line.split() for line in connections.splitlines()]
    remotes = [one[2].split(":") for one in fields if one[3] == _ESTABLISHED]
    return {_address(address) for address, at in remotes if int(at, 16) == port}


def _address(written: str) -> Address:
    """The address that the kernel writes as words of 32 bits, each in the order of a little-endian machine."""
    words = (bytes.fromhex(written[start : start + 8])[::-1] for start in range(0, len(written), 8))
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


class Training:
    """A store of three members, and a Job that trains all the while."""

    def __init__(self, cluster: Cluster, chart: Chart, job: Job) -> None:
        self.cluster = cluster
        self.chart = chart
        self.job = job
        self.started = self._started()
        self.records = self._records()

    def undisturbed(self) -> None:
        """Fails if a worker was started again, or a node has another lease than at first."""
        self.not_restarted()
        assert self._records() == self.records, f"a node has another record than before\n{self.job.describe()}"
        doubts = self.job.said("whether this node still counts is uncertain")
        assert doubts == [], doubts
        assert len(self.job.running()) == 2

    def not_restarted(self) -> None:
        """Fails if a worker was started again."""
        assert self._started() == self.started, f"workers were started again\n{self.job.describe()}"

    def whole(self) -> None:
        """Waits until all three members are ready and in one cluster."""
        self.chart.roll_out()
        wait_for(
            "three members are ready",
            lambda: sum(map(is_ready, self.chart.pods())) == 3,
            timeout_seconds=180,
            every_seconds=1,
        )
        may_evict = "jsonpath={.status.disruptionsAllowed}=1"
        self.cluster.kubernetes.wait("poddisruptionbudget/lattice-rdzv", may_evict, self.chart.namespace)
        wait_for("the cluster is healthy", self._healthy, timeout_seconds=60, every_seconds=1)

    def _healthy(self) -> bool:
        try:
            return "unhealthy" not in self.chart.etcdctl("endpoint", "health", "--cluster")
        except Failed:
            return False

    def leader(self) -> str:
        """The pod of the member that leads."""
        answers = json.loads(self.chart.etcdctl("endpoint", "status", "--cluster", "--write-out=json"))
        leader = answers[0]["Status"]["leader"]
        endpoint = next(one["Endpoint"] for one in answers if one["Status"]["header"]["member_id"] == leader)
        return next(name for name in NAMES if name in endpoint)

    def lead(self, pod: str) -> None:
        """Has the member of this pod lead."""
        leader = self.leader()
        if leader != pod:
            self.chart.etcdctl("move-leader", f"{self.member(pod):x}", pod=leader)

    def relied_on(self, *, not_on: str = "") -> str:
        """A member that an agent is connected to, and that is not on this machine."""

        def find() -> str | None:
            return next((name for name in self.connected() if self.node_of(name) != not_on), None)

        wait_for("an agent is connected to a member", self.connected, timeout_seconds=60, every_seconds=1)
        if find() is None:
            # All have the one there: while it is away they turn to another.
            (there,) = self.connected()
            self.cluster.kubernetes("delete", "pod", there, f"--namespace={self.chart.namespace}")
            self.whole()
        return str(wait_for("an agent is connected to another member", find, timeout_seconds=60, every_seconds=1))

    def connected(self) -> list[str]:
        """The members that an agent has a connection to, as the kernel of its pod knows."""
        namespace = self.job.namespace
        read = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
        lines = [self.cluster.kubernetes.execute(namespace, pod, *read) for pod in self.job.running()]
        remote = established("".join(lines), 2379)
        return sorted(
            pod["metadata"]["name"]
            for pod in self.chart.pods()
            if any(ipaddress.ip_address(one["ip"]) in remote for one in pod["status"].get("podIPs", []))
        )

    def member(self, pod: str) -> int:
        """The id of a pod's member."""
        members = json.loads(self.chart.etcdctl("member", "list", "--write-out=json"))["members"]
        return int(next(one["ID"] for one in members if one["name"] == pod))

    def node_of(self, pod: str) -> str:
        """The machine that a pod runs on."""
        return str(self.cluster.kubernetes.get("pod", pod, self.chart.namespace)["spec"]["nodeName"])

    def _started(self) -> int:
        self.job.pods()
        return len(self.job.lines("started"))

    def _records(self) -> list[tuple[str, int, int]]:
        """Key, lease and creation of every node's record."""
        # With the values: 3.7 leaves leases out of a range of keys alone.
        printed = self.chart.etcdctl("get", "/lattice/rdzv/", "--prefix", "--write-out=json")
        return sorted(
            (one["key"], one.get("lease", 0), one["create_revision"])
            for one in json.loads(printed).get("kvs", [])
            if b"/nodes/" in base64.b64decode(one["key"])
        )


def train(cluster: Cluster, namespace: str, make_job: MakeJob) -> Iterator[Training]:
    """Installs three members and starts the Job, whose pods are all on the first machine that takes any; ends it after the stories."""
    chart = Chart(cluster.kubernetes, namespace)
    chart.install(MEMBERS)
    nodes = [one for one in cluster.kubernetes.list("nodes", "") if takes_pods(one)]
    first = min(one["metadata"]["name"] for one in nodes)

    def on_the_first(manifest: Object) -> None:
        manifest["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": first}

    one = make_job(namespace, nodes=2, nnodes="2", change=on_the_first)
    one.world(2)
    training = Training(cluster, chart, one)
    yield training
    training.undisturbed()
    one.end()
    one.succeeded()
    training.not_restarted()
