"""One member, rendered and run: it starts and serves with every supported etcd, and clients detect the loss of its data."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from harness.wait import wait_for

from chart.cluster import Cluster, header, members, open_port
from chart.conftest import MakeCluster

pytestmark = pytest.mark.namespaces

KINDS: dict[str, dict[str, Any]] = {
    "ephemeral": {},
    "memory": {"ephemeral": {"medium": "Memory"}, "etcd": {"quotaBackendBytes": 67108864}},
    "volume": {"persistence": {"enabled": True}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_and_serves(cluster: MakeCluster, version: str, kind: str) -> None:
    pod = started(cluster(KINDS[kind], version))
    assert pod.etcd.probe("startup")
    assert pod.etcd.probe("liveness")
    assert put(pod, "/lattice/rdzv/x", "1").returncode == 0
    assert pod.etcd.execute("etcdctl", "get", "/lattice/rdzv/x", "--print-value-only").stdout == "1\n"
    assert pod.containers["etcd"].spec["image"].startswith("quay.io/coreos/etcd:v3.")


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_without_dns(cluster: MakeCluster, version: str, kind: str) -> None:
    """The DNS of a Kubernetes cluster may start later than etcd on one of its nodes."""
    one = cluster(KINDS[kind], version)
    pod = one.add("lattice-rdzv-0")
    one.hosts.write_text("127.0.0.1 localhost\n")
    pod.start()
    pod.wait_ready()


def test_its_ports_are_reachable(cluster: MakeCluster, version: str) -> None:
    values = {
        "clientService": {"internalPort": 3001},
        "serverService": {"clientPort": {"internalPort": 3002}, "serverPort": {"internalPort": 3003}},
        "etcd": {"metricsPort": 3004},
    }
    pod = started(cluster(values, version))
    # A single member has no peers, so its peer port listens only on loopback.
    reached = {name for name, port in pod.etcd.ports.items() if open_port(pod, port)}
    assert reached == pod.etcd.ports.keys() - {"server"}
    assert members(pod)[0]["clientURLs"] == ["http://lattice-rdzv-server.lattice.svc.cluster.local:2379"]


def test_restarted_container_keeps_its_data_and_a_new_pod_is_a_new_cluster(cluster: MakeCluster, version: str) -> None:
    """Clients detect by the cluster ID that an etcd has lost its data."""
    one = cluster({}, version)
    pod = started(one)
    assert put(pod, "x", "1").returncode == 0
    before = header(pod)
    pod.etcd.kill()
    pod.etcd.start()
    pod.wait_ready()
    assert header(pod) == {**before, "raft_term": header(pod)["raft_term"]}
    assert pod.etcd.execute("etcdctl", "get", "x", "--print-value-only").stdout == "1\n"
    pod.terminate()
    new = one.add("lattice-rdzv-5d8f-second")
    new.start()
    new.wait_ready()
    assert header(new)["cluster_id"] != before["cluster_id"]
    assert new.etcd.execute("etcdctl", "get", "x", "--print-value-only").stdout == ""


def test_member_on_a_volume_keeps_its_data_in_a_new_pod(cluster: MakeCluster, version: str) -> None:
    one = cluster(KINDS["volume"], version)
    pod = started(one)
    assert put(pod, "x", "1").returncode == 0
    before = header(pod)
    pod.terminate()
    new = one.add(pod.name)
    assert new.address != pod.address
    new.start()
    new.wait_ready()
    assert header(new)["cluster_id"] == before["cluster_id"]
    assert new.etcd.execute("etcdctl", "get", "x", "--print-value-only").stdout == "1\n"


def test_member_that_lost_its_volume_is_another_cluster(cluster: MakeCluster, version: str) -> None:
    one = cluster(KINDS["volume"], version)
    pod = started(one)
    before = header(pod)
    pod.terminate()
    empty(one, pod.name)
    new = one.add(pod.name)
    new.start()
    new.wait_ready()
    assert header(new)["cluster_id"] != before["cluster_id"]


def test_it_ends_on_sigterm(cluster: MakeCluster, version: str) -> None:
    pod = started(cluster({}, version))
    pod.terminate()
    assert not pod.etcd.running


def test_full_database_is_alive_and_ready(cluster: MakeCluster, version: str) -> None:
    """It serves reads and deletes, which are needed to free space. A restart would not free any."""
    pod = started(cluster({"etcd": {"quotaBackendBytes": 1048576}}, version))
    value = "x" * 100000

    def full() -> bool:
        done = put(pod, "x", value)
        return "database space exceeded" in done.stderr

    wait_for("the database is full", full, timeout_seconds=90, detail=pod.describe)
    assert "NOSPACE" in pod.etcd.execute("etcdctl", "alarm", "list").stdout
    assert pod.etcd.probe("liveness")
    assert pod.etcd.probe("readiness")
    # The commands of docs/runbooks/nospace.md.
    revision = str(header(pod)["revision"])
    for command in (("compaction", revision), ("defrag",), ("alarm", "disarm")):
        done = pod.etcd.execute("etcdctl", *command)
        assert done.returncode == 0, done.stderr
    assert put(pod, "x", "1").returncode == 0
    assert pod.etcd.execute("etcdctl", "alarm", "list").stdout == ""


def started(one: Cluster) -> Any:
    pod = one.start()[0]
    pod.wait_ready()
    return pod


def put(pod: Any, key: str, value: str) -> Any:
    return pod.etcd.execute("etcdctl", "put", key, value)


def empty(one: Cluster, name: str) -> None:
    shutil.rmtree(one.claim(name))
