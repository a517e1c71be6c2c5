"""An etcd that is reinstalled on its earlier volumes or on new ones, and how Helm and other tools apply the chart."""

from __future__ import annotations

import json

import pytest
from chart.render import MEMBERS, Renderer

from e2e.chart import Chart, apply_as_gitops
from e2e.cluster import Cluster
from e2e.kubernetes import Failed, is_ready, takes_pods
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(600, func_only=True)

KEY = "/lattice/kept"


@pytest.fixture
def uninstalled(chart: Chart) -> tuple[Chart, int]:
    """Provides an etcd of three members that had a key and was uninstalled, and its cluster ID."""
    chart.install(MEMBERS)
    chart.write("put", KEY, "1")
    before = cluster_id(chart)
    chart.uninstall()
    chart.gone()
    return chart, before


def test_on_its_earlier_claims_the_cluster_id_is_unchanged(uninstalled: tuple[Chart, int]) -> None:
    chart, before = uninstalled
    chart.install(MEMBERS)
    assert chart.etcdctl("get", KEY, "--print-value-only").strip() == "1"
    assert cluster_id(chart) == before


def test_on_new_claims_the_cluster_id_is_new(uninstalled: tuple[Chart, int]) -> None:
    """Clients detect by the ID that their data is gone."""
    chart, before = uninstalled
    chart.kubernetes("delete", "persistentvolumeclaims", "--all", f"--namespace={chart.namespace}")
    chart.install(MEMBERS)
    if chart.etcdctl("get", KEY, "--print-value-only").strip() != "":
        raise Failed(["etcdctl", "get", KEY], 0, "the key of the old etcd is there")
    assert cluster_id(chart) != before


def cluster_id(chart: Chart) -> int:
    """Returns the cluster ID, which every response has."""
    return int(json.loads(chart.etcdctl("get", "none", "--write-out=json"))["header"]["cluster_id"])


def test_member_without_a_quorum_is_not_evicted(cluster: Cluster, chart: Chart) -> None:
    """A drain would otherwise take the last members of a cluster that only needs the others back."""
    chart.install(MEMBERS)
    chart.write("put", KEY, "1")
    nodes = [one["metadata"]["name"] for one in cluster.kubernetes.list("nodes", "") if takes_pods(one)]
    try:
        cluster.kubernetes("cordon", *nodes)
        lost = [f"lattice-rdzv-{number}" for number in (1, 2)]
        cluster.kubernetes("delete", "pods", *lost, f"--namespace={chart.namespace}")
        first = "lattice-rdzv-0"
        wait_for(
            "the first member is not ready",
            lambda: not is_ready(cluster.kubernetes.get("pod", first, chart.namespace)),
        )
        with pytest.raises(Failed, match="disruption budget"):
            chart.evict(first)
    finally:
        cluster.kubernetes("uncordon", *nodes)
    chart.roll_out()
    assert chart.etcdctl("get", KEY, "--print-value-only").strip() == "1"


@pytest.mark.parametrize("members", [1, 3])
def test_server_side_apply_of_the_same_render_changes_nothing(chart: Chart, members: int) -> None:
    """Some controllers render the chart themselves, without Helm's releases and lookups."""
    generations = []
    for _ in range(2):
        apply_as_gitops(chart, Renderer(namespace=chart.namespace).text(MEMBERS if members == 3 else {}))
        chart.values = MEMBERS if members == 3 else {}
        chart.roll_out()
        one = json.loads(chart.kubernetes("get", chart.workload, f"--namespace={chart.namespace}", "--output=json"))
        generations.append((one["metadata"]["uid"], one["metadata"]["generation"]))
    assert generations[0] == generations[1]
    wait_for("every member serves", lambda: len(chart.pods()) == members)
