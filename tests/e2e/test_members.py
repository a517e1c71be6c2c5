"""Whatever one of three members does, no lease is lost and no worker restarts, with default settings on both sides.

One store and one training Job serve all stories of this module; each leaves them whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.wait import wait_for

from e2e.cluster import Cluster
from e2e.conftest import MakeJob, MakeNamespace
from e2e.kubernetes import Failed, holds
from e2e.members import NAMES, Training, established, train

pytestmark = pytest.mark.timeout(900, func_only=True)

# The controllers' grace period, and some more.
FOUND_OUT_SECONDS = 90.0


def test_connections_are_read_as_the_kernel_writes_them() -> None:
    tcp = """  sl  local_address rem_address   st
   0: 0100007F:0050 0201A8C0:094B 01 00000000:00000000
   1: 0100007F:0050 0301A8C0:094B 06 00000000:00000000
   2: 0100007F:0050 0401A8C0:094C 01 00000000:00000000
   3: 00000000000000000000000000000000:0050 000000FD000000000000000002000000:094B 01 00000000:00000000
   4: 00000000000000000000000000000000:0050 0000000000000000FFFF00000501A8C0:094B 01 00000000:00000000"""
    assert {str(one) for one in established(tcp, 2379)} == {"192.168.1.2", "fd00::2", "192.168.1.5"}


@pytest.fixture(scope="module")
def training(cluster: Cluster, module_namespaces: MakeNamespace, module_job: MakeJob) -> Iterator[Training]:
    yield from train(cluster, module_namespaces("members"), module_job)


@pytest.fixture
def whole(training: Training) -> Iterator[Training]:
    """The same, with all members there before and after a story."""
    training.whole()
    yield training
    training.whole()


@pytest.mark.addresses
@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_members_pod_is_deleted(whole: Training, which: str) -> None:
    victim = whole.relied_on()
    put_in_office(whole, victim, leads=which == "leader")
    assert victim in whole.connected()
    whole.cluster.kubernetes("delete", "pod", victim, f"--namespace={whole.chart.namespace}")
    whole.whole()
    whole.undisturbed()


def test_all_members_are_rolled(whole: Training) -> None:
    before = {one["metadata"]["uid"] for one in whole.chart.pods()}
    whole.cluster.kubernetes("rollout", "restart", whole.chart.workload, f"--namespace={whole.chart.namespace}")
    whole.whole()
    assert before.isdisjoint(one["metadata"]["uid"] for one in whole.chart.pods())
    whole.undisturbed()


def test_the_second_eviction_is_refused(whole: Training) -> None:
    evict(whole, NAMES[0])
    with pytest.raises(Failed, match="disruption budget"):
        evict(whole, NAMES[1])
    whole.whole()
    whole.undisturbed()


# A machine that is cut off continues to run what it has, a lost one does not come back as it was, and a paused one closes no
# connection and continues where it stopped, also with its office.
@pytest.mark.parametrize(
    ("which", "loss"),
    [("leader", "cut off"), ("follower", "cut off"), ("leader", "lost"), ("leader", "paused"), ("follower", "paused")],
)
def test_a_members_machine(whole: Training, which: str, loss: str) -> None:
    """It is away for longer than a lease lives: until the controllers have found out."""
    cluster = whole.cluster
    if cluster.no_faults:
        pytest.skip(cluster.no_faults)
    victim = whole.relied_on(not_on=whole.node_of(whole.job.running()[0]))
    put_in_office(whole, victim, leads=which == "leader")
    node = whole.node_of(victim)
    assert victim in whole.connected()
    try:
        if loss == "paused":
            cluster.pause(node)
        else:
            cluster.cut_off(node)
        if loss == "lost":
            cluster.stop(node)
        wait_for(
            f"{node} is found out",
            lambda: not is_there(cluster, node),
            timeout_seconds=FOUND_OUT_SECONDS,
            every_seconds=1,
        )
    finally:
        if loss == "lost":
            cluster.start(node)
        if loss == "paused":
            cluster.resume(node)
        else:
            cluster.reconnect(node)
    wait_for(f"{node} is back", lambda: is_there(cluster, node), timeout_seconds=FOUND_OUT_SECONDS, every_seconds=1)
    whole.whole()
    whole.undisturbed()


def put_in_office(training: Training, victim: str, *, leads: bool) -> None:
    """Has the member lead, or another one."""
    training.lead(victim if leads else next(name for name in NAMES if name != victim))


def is_there(cluster: Cluster, node: str) -> bool:
    return holds("Ready", cluster.kubernetes.get("node", node))


def evict(training: Training, pod: str) -> None:
    """Asks the API server for an eviction, as a drain does."""
    namespace = training.chart.namespace
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    training.cluster.kubernetes("create", "--raw", path, "--filename=-", text=json.dumps(eviction))
