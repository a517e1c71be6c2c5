"""An etcd of three members, and a Job that trains with it while a scenario injects faults."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterator

from chart.render import MEMBERS, merged

from e2e.agents import Job
from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob
from e2e.kubernetes import HOSTNAME, Object, is_ready, takes_pods
from e2e.wait import wait_for

NAMES = ("lattice-rdzv-0", "lattice-rdzv-1", "lattice-rdzv-2")


_ESTABLISHED = "01"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def established(connections: str, port: int) -> set[Address]:
    """Returns the remote addresses of the established connections to a port, from /proc/net/tcp and tcp6: see proc(5)."""
    fields = [line.split() for line in connections.splitlines()]
    remotes = [one[2].split(":") for one in fields if one[3] == _ESTABLISHED]
    return {_address(address) for address, at in remotes if int(at, 16) == port}


def _address(written: str) -> Address:
    """Parses an address that the kernel has written as words of 32 bits in the byte order of a little-endian machine."""
    words = (bytes.fromhex(written[start : start + 8])[::-1] for start in range(0, len(written), 8))
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


class Training:
    """An etcd of three members, and a Job that trains with it during all scenarios."""

    def __init__(self, cluster: Cluster, chart: Chart, job: Job) -> None:
        self.cluster = cluster
        self.chart = chart
        self.job = job
        self.started = self._started()
        self.records = self._records()

    def undisturbed(self) -> None:
        """Fails if a worker was restarted, or if the lease of a node has changed."""
        self.not_restarted()
        assert self._records() == self.records, f"a node has another record than before\n{self.job.describe()}"
        doubts = self.job.said("the lease of this node may have expired")
        assert doubts == [], doubts
        assert len(self.job.running()) == 2

    def not_restarted(self) -> None:
        """Fails if a worker was restarted."""
        assert self._started() == self.started, f"workers were restarted\n{self.job.describe()}"

    def whole(self) -> None:
        """Waits until all three members are ready and the cluster is healthy."""
        self.chart.roll_out()
        wait_for(
            "three members are ready",
            lambda: sum(map(is_ready, self.chart.pods())) == 3,
            timeout_seconds=180,
        )
        may_evict = "jsonpath={.status.disruptionsAllowed}=1"
        self.cluster.kubernetes.wait("poddisruptionbudget/lattice-rdzv", may_evict, self.chart.namespace)
        health = ("endpoint", "health", "--cluster")
        wait_for("the cluster is healthy", lambda: "unhealthy" not in self.chart.etcdctl(*health), timeout_seconds=60)

    def leader(self) -> str:
        """Waits until all members agree on a leader, and returns its pod."""

        def find() -> str | None:
            statuses = json.loads(self.chart.etcdctl("endpoint", "status", "--cluster", "--write-out=json"))
            leaders = {one["Status"].get("leader") for one in statuses}
            agreed = [one["Endpoint"] for one in statuses if leaders == {one["Status"]["header"]["member_id"]}]
            return next((name for name in NAMES for endpoint in agreed if name in endpoint), None)

        return str(wait_for("the members agree on a leader", find))

    def lead(self, pod: str) -> None:
        """Makes the member in this pod the leader, if necessary several times, because an election can come in between."""

        def leads() -> bool:
            leader = self.leader()
            if leader != pod:
                self.chart.etcdctl("move-leader", f"{self.member(pod):x}", pod=leader)
            return self.leader() == pod

        wait_for(f"{pod} leads", leads)

    def member_in_use(self, *, not_on: str = "") -> str:
        """Returns a member to which an agent is connected, and which is not on the Kubernetes node `not_on`."""

        def find() -> str | None:
            return next((name for name in self.connected() if self.node_of(name) != not_on), None)

        wait_for("an agent is connected to a member", self.connected, timeout_seconds=60)
        if find() is None:
            # All agents are connected to the member on that node. They fail over to another one while it is restarted.
            for there in self.connected():
                self.cluster.kubernetes("delete", "pod", there, f"--namespace={self.chart.namespace}")
            self.whole()
        return str(wait_for("an agent is connected to another member", find, timeout_seconds=60))

    def connected(self) -> list[str]:
        """Returns the members to which an agent is connected, according to the kernel of its pod."""
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
        """Returns the id of a pod's member."""
        members = json.loads(self.chart.etcdctl("member", "list", "--write-out=json"))["members"]
        return int(next(one["ID"] for one in members if one["name"] == pod))

    def node_of(self, pod: str) -> str:
        """Returns the Kubernetes node of a pod."""
        return str(self.cluster.kubernetes.get("pod", pod, self.chart.namespace)["spec"]["nodeName"])

    def _started(self) -> int:
        self.job.pods()
        return len(self.job.lines("started"))

    def _records(self) -> list[tuple[str, int, int]]:
        """Returns key, lease and create revision of every node's record."""
        # Not `--keys-only`, with which 3.7 does not return leases.
        printed = self.chart.etcdctl("get", "/lattice/rdzv/", "--prefix", "--write-out=json")
        return sorted(
            (one["key"], one.get("lease", 0), one["create_revision"])
            for one in json.loads(printed).get("kvs", [])
            if b"/nodes/" in base64.b64decode(one["key"])
        )


def train(cluster: Cluster, namespace: str, make_job: MakeJob, *, etcd: str = "") -> Iterator[Training]:
    """Installs three members, of the chart's default etcd or of another one, and starts the Job, with all pods on one Kubernetes
    node. Ends the Job afterwards."""
    chart = Chart(cluster.kubernetes, namespace)
    if etcd:
        cluster.provide_etcd(etcd)
    chart.install(merged(MEMBERS, {"image": f"quay.io/coreos/etcd:{etcd}"} if etcd else {}))
    nodes = [one for one in cluster.kubernetes.list("nodes", "") if takes_pods(one)]
    first = min(one["metadata"]["name"] for one in nodes)

    def on_the_first(manifest: Object) -> None:
        manifest["spec"]["template"]["spec"]["nodeSelector"] = {HOSTNAME: first}

    # Long enough for renewals to fail over to another member even if processes stall for seconds. The faults last longer.
    one = make_job(namespace, nodes=2, nnodes="2", conf="lease_ttl=30", change=on_the_first)
    one.world(2)
    training = Training(cluster, chart, one)
    yield training
    training.undisturbed()
    one.end()
    one.succeeded()
    training.not_restarted()
