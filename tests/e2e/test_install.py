"""The chart installed as its README says, and what agents find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chart.render import Renderer

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeNamespace, MakePod

pytestmark = pytest.mark.timeout(600, func_only=True)

# What Kubernetes itself puts into a namespace, and what its controllers make of our objects.
MADE_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
KINDS = (
    "configmaps,cronjobs,daemonsets,deployments,horizontalpodautoscalers,ingresses,jobs,networkpolicies,"
    "persistentvolumeclaims,poddisruptionbudgets,rolebindings,roles,secrets,serviceaccounts,services,statefulsets"
)
# How long it takes until an agent has its world, which is printed and not judged: a machine under load is slow, not wrong.
JOIN = """
import time
began = time.perf_counter()
import lattice_rdzv
imported = time.perf_counter()
with lattice_rdzv.join("timing", nnodes=1) as run:
    run.next_world()
    joined = time.perf_counter()
    run.close("succeeded")
print(f"import {imported - began:.3f} s, discovery and join {joined - imported:.3f} s")
"""


def objects_in(cluster: Cluster, namespace: str) -> set[tuple[str, str]]:
    found = {(one["kind"], one["metadata"]["name"]) for one in cluster.kubernetes.list(KINDS, namespace)}
    return {one for one in found - MADE_BY_KUBERNETES if not one[1].startswith("sh.helm.release.")}


def of_helm(cluster: Cluster, namespace: str) -> set[str]:
    """Where Helm keeps what it knows of releases."""
    names = {one["metadata"]["name"] for one in cluster.kubernetes.list("secrets", namespace)}
    return {name for name in names if name.startswith("sh.helm.release.")}


@pytest.mark.addresses
def test_the_defaults_make_the_documented_objects(cluster: Cluster, chart: Chart) -> None:
    notes = chart.install()
    assert "helm test" in notes
    assert objects_in(cluster, chart.namespace) == {
        ("ConfigMap", "lattice-rdzv-config"),
        ("Deployment", "lattice-rdzv"),
        ("Service", "lattice-rdzv-client"),
        ("Service", "lattice-rdzv-server"),
    }
    rendered = Renderer(namespace=chart.namespace).objects()
    for one in rendered.all:
        live = cluster.kubernetes.get(one["kind"], one["metadata"]["name"], chart.namespace)
        assert lacks(one, live) == [], one["metadata"]["name"]
    chart.uninstall()
    assert objects_in(cluster, chart.namespace) == set()
    assert of_helm(cluster, chart.namespace) == set()
    chart.gone()


def lacks(wanted: Any, live: Any, path: str = "") -> list[str]:
    """What of a rendered object the live one does not have as it was written."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return [more for key, value in wanted.items() for more in lacks(value, live.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        return [more for index, value in enumerate(wanted) for more in lacks(value, live[index], f"{path}[{index}]")]
    return [] if wanted == live else [f"{path}: {wanted!r} became {live!r}"]


@pytest.mark.addresses
def test_agents_find_the_store(
    cluster: Cluster, chart: Chart, agent_pod: MakePod, namespaces: MakeNamespace, say: Callable[[str], None]
) -> None:
    """By the variables, by the ConfigMap where service links are off, by what it says in another namespace, and, where
    nothing is said, by the name that the Service has in their own."""
    elsewhere = namespaces("team")
    chart.install({"agents": {"namespaces": [elsewhere]}})
    client = chart.kubernetes.get("service", "lattice-rdzv-client", chart.namespace)["spec"]
    address, port = client["clusterIP"], client["ports"][0]["port"]
    # An IPv6 address stands in brackets before a port.
    both = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    linked = agent_pod(chart.namespace, "linked", with_config=False)
    variables = linked.environment()
    assert variables["LATTICE_RDZV_CLIENT_SERVICE_HOST"] == address
    assert variables["LATTICE_RDZV_CLIENT_SERVICE_PORT"] == str(port)
    assert variables["LATTICE_RDZV_CLIENT_PORT"] == f"tcp://{both}"
    assert linked.finds() == f"http://{both}"

    say(f"in a pod: {linked('python3', '-c', JOIN).strip()}")

    silent = agent_pod(chart.namespace, "silent", with_config=False, enableServiceLinks=False)
    assert silent.finds() == f"http://lattice-rdzv-client.{chart.namespace}.svc.cluster.local.:2379"

    by_name = f"http://lattice-rdzv-client.{chart.namespace}.svc:2379"
    told = agent_pod(chart.namespace, "told", enableServiceLinks=False)
    assert "LATTICE_RDZV_CLIENT_PORT" not in told.environment()
    assert told.environment()["LATTICE_RDZV_BACKEND"] == "etcd"
    assert told.finds() == by_name
    assert agent_pod(elsewhere, "elsewhere").finds() == by_name
    chart.uninstall()
    assert objects_in(cluster, elsewhere) == set()
