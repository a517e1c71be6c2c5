"""A fault of one of three etcd members costs no lease and restarts no worker.

All scenarios of this module share one etcd and one training Job. Each waits until all members are ready again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.cluster import Cluster
from e2e.conftest import MakeJob, MakeNamespace
from e2e.kubernetes import Failed, holds
from e2e.members import NAMES, Training, established, train
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(900, func_only=True)

# Up to 3.5.12, which includes the chart's default, a leader that a busy machine stalls may revoke leases: etcd issue 15247.
ETCD = "v3.5.35"
# The grace period of Kubernetes' controllers, and some more.
DETECTED_SECONDS = 90.0


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
    yield from train(cluster, module_namespaces("members"), module_job, etcd=ETCD)


@pytest.fixture
def whole(training: Training) -> Iterator[Training]:
    """Provides the Job, and waits before and after each scenario until all members are ready."""
    training.whole()
    yield training
    training.whole()


@pytest.mark.addresses
def test_leaders_pod_is_deleted(whole: Training) -> None:
    victim = victim_of(whole, "leader")
    whole.cluster.kubernetes("delete", "pod", victim, f"--namespace={whole.chart.namespace}")
    whole.whole()
    whole.undisturbed()


def test_all_members_are_restarted(whole: Training) -> None:
    before = {one["metadata"]["uid"] for one in whole.chart.pods()}
    whole.cluster.kubernetes("rollout", "restart", whole.chart.workload, f"--namespace={whole.chart.namespace}")
    whole.whole()
    assert before.isdisjoint(one["metadata"]["uid"] for one in whole.chart.pods())
    whole.undisturbed()


def test_second_eviction_is_refused(whole: Training) -> None:
    whole.chart.evict(NAMES[0])
    with pytest.raises(Failed, match="disruption budget"):
        whole.chart.evict(NAMES[1])
    whole.whole()
    whole.undisturbed()


# A Kubernetes node that is cut off continues to run its pods. A lost one restarts them later. A paused one closes no connection
# and continues where it stopped. The leader is not paused: it would believe that it still leads, and revoke all leases that were
# due meanwhile. etcd 3.5.13 ignores most of these requests, but not those that it sends before it learns of the new leader.
@pytest.mark.parametrize(
    ("which", "loss"),
    [("leader", "cut off"), ("leader", "lost"), ("follower", "paused")],
)
def test_members_machine(whole: Training, which: str, loss: str) -> None:
    """The Kubernetes node of a member fails for longer than the TTL of a lease, until the controllers have detected it."""
    cluster = whole.cluster
    if cluster.no_faults:
        pytest.skip(cluster.no_faults)
    victim = victim_of(whole, which, not_on=whole.node_of(whole.job.running()[0]))
    node = whole.node_of(victim)
    try:
        if loss == "paused":
            cluster.pause(node)
        else:
            cluster.cut_off(node)
        if loss == "lost":
            cluster.stop(node)
        wait_for(
            f"{node} is not ready",
            lambda: not is_ready(cluster, node),
            timeout_seconds=DETECTED_SECONDS,
        )
    finally:
        if loss == "lost":
            cluster.start(node)
        if loss == "paused":
            cluster.resume(node)
        else:
            cluster.reconnect(node)
    wait_for(f"{node} is ready again", lambda: is_ready(cluster, node), timeout_seconds=DETECTED_SECONDS)
    whole.whole()
    whole.undisturbed()


def victim_of(training: Training, which: str, *, not_on: str = "") -> str:
    """Returns a member to which an agent is connected, and which is the leader or a follower. It is not on the Kubernetes node
    `not_on`."""

    def find() -> str | None:
        victim = training.member_in_use(not_on=not_on)
        training.lead(victim if which == "leader" else next(name for name in NAMES if name != victim))
        # The agent may have changed to another member meanwhile.
        is_as_wanted = victim in training.connected() and (training.leader() == victim) == (which == "leader")
        return victim if is_as_wanted else None

    return str(wait_for(f"an agent is connected to a {which}", find, timeout_seconds=300))


def is_ready(cluster: Cluster, node: str) -> bool:
    return holds("Ready", cluster.kubernetes.get("node", node))
