"""The only pod of etcd is lost, or its machine. Training continues, and the nodes restore their round in the new, empty etcd."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob, MakePod
from e2e.kubernetes import HOSTNAME, is_ready, takes_pods
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(600, func_only=True)


def test_stores_pod_is_deleted_and_no_worker_restarts(cluster: Cluster, chart: Chart, job: MakeJob) -> None:
    chart.install()
    one = job(chart.namespace, nodes=2, nnodes="2:3", conf="last_call_timeout=3")
    one.world(2)
    (old,) = chart.pods()
    assert nodes(chart) == 2

    cluster.kubernetes("delete", "pod", old["metadata"]["name"], f"--namespace={chart.namespace}")
    one.wait("another etcd serves", lambda: [pod for pod in chart.pods() if is_ready(pod)])
    (new,) = chart.pods()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    one.wait("both nodes are in it", lambda: nodes(chart) == 2)
    assert len(one.lines("started")) == 2, "no worker was started again"
    assert len(one.running()) == 2

    # The restored world can grow, which requires that the new etcd has the records of its members.
    one.scale(3)
    assert {line.restart_count for line in one.world(3)} == {0}
    # Two workers of the first round and three of the second. No other round has started workers in between.
    assert len(one.lines("started")) == 5
    assert len({line.master_port for line in one.lines()}) == 2
    one.end()
    one.succeeded()


def test_stores_machine_is_lost_and_another_one_runs_it(
    cluster: Cluster, chart: Chart, agent_pod: MakePod, say: Callable[[str], None]
) -> None:
    """The pod tolerates the loss for 30 s. By Kubernetes' default it would stay for 300 s."""
    if cluster.no_faults:
        pytest.skip(cluster.no_faults)
    chart.install()
    (old,) = chart.pods()
    lost = old["spec"]["nodeName"]
    others = [one["metadata"]["name"] for one in cluster.kubernetes.list("nodes", "") if takes_pods(one)]
    agent = agent_pod(chart.namespace, nodeSelector={HOSTNAME: next(name for name in others if name != lost)})
    began = time.monotonic()
    cluster.pause(lost)
    try:
        wait_for(
            "another Kubernetes node runs etcd",
            lambda: [one for one in chart.pods() if is_ready(one) and one["spec"]["nodeName"] != lost],
            timeout_seconds=240,
        )
        say(f"a paused Kubernetes node: another one runs etcd after {time.monotonic() - began:.0f} s")
        agent.finds()
    finally:
        cluster.resume(lost)
    wait_for("the old pod is gone", lambda: len(chart.pods()) == 1)


def nodes(chart: Chart) -> int:
    """Returns how many nodes have a record in etcd."""
    return chart.etcdctl("get", "/lattice/rdzv/", "--prefix", "--keys-only").count("/nodes/")
