"""The only pod of etcd is lost. Training continues, and the nodes restore their round in the new, empty etcd."""

from __future__ import annotations

import pytest

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob
from e2e.kubernetes import is_ready

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


def nodes(chart: Chart) -> int:
    """Returns how many nodes have a record in etcd."""
    return chart.etcdctl("get", "/lattice/rdzv/", "--prefix", "--keys-only").count("/nodes/")
