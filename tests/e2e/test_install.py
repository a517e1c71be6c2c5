"""The chart, installed as its README describes, and how agents find the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chart.render import Renderer
from chart.repository import package, registry_in_memory, served

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeNamespace, MakePod

pytestmark = pytest.mark.timeout(600, func_only=True)

# The objects that Kubernetes itself creates in a namespace, and the kinds that the chart could create.
MADE_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
KINDS = (
    "configmaps,cronjobs,daemonsets,deployments,horizontalpodautoscalers,ingresses,jobs,networkpolicies,"
    "persistentvolumeclaims,poddisruptionbudgets,rolebindings,roles,secrets,serviceaccounts,services,statefulsets"
)
# Prints the time until an agent has its world. No limit is checked, because a machine under load is slow.
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
    """Returns the Secrets in which Helm keeps its releases."""
    names = {one["metadata"]["name"] for one in cluster.kubernetes.list("secrets", namespace)}
    return {name for name in names if name.startswith("sh.helm.release.")}


@pytest.mark.addresses
def test_defaults_make_the_documented_objects(cluster: Cluster, chart: Chart, tmp_path: Path) -> None:
    """Installs the package from the index of a web server."""
    assert package(tmp_path).returncode == 0
    with served(tmp_path) as url:
        chart.source = (f"--repo={url}", "lattice-rdzv")
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
        assert differences(one, live) == [], one["metadata"]["name"]
    chart.uninstall()
    assert objects_in(cluster, chart.namespace) == set()
    assert of_helm(cluster, chart.namespace) == set()
    chart.gone()


def differences(wanted: Any, live: Any, path: str = "") -> list[str]:
    """Returns the values of a rendered object that the live object does not have."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return [each for key, value in wanted.items() for each in differences(value, live.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        pairs = enumerate(zip(wanted, live, strict=True))
        return [each for index, (one, other) in pairs for each in differences(one, other, f"{path}[{index}]")]
    return [] if wanted == live else [f"{path}: {wanted!r} became {live!r}"]


@pytest.mark.addresses
def test_agents_find_the_store(
    cluster: Cluster,
    agent_pod: MakePod,
    namespaces: MakeNamespace,
    say: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """Agents find it by the variables of service links, and without service links by the ConfigMap, also in another namespace.
    With neither of them, they find it by the name of the Service in their own namespace. A pod on the host network, whose DNS
    does not know the names of Services, finds it by the variables, with the ConfigMap, too. The chart is installed from an OCI
    registry."""
    # A pod on the host network is not restricted.
    chart = Chart(cluster.kubernetes, namespaces(enforce="privileged"))
    elsewhere = namespaces("team")
    assert package(tmp_path).returncode == 0
    (archive,) = tmp_path.glob("*.tgz")
    with registry_in_memory() as registry:
        chart.helm("push", str(archive), f"oci://{registry}/charts", "--plain-http")
        chart.source = (f"oci://{registry}/charts/lattice-rdzv", "--plain-http")
        chart.install({"agents": {"namespaces": [elsewhere]}})
    client = chart.kubernetes.get("service", "lattice-rdzv-client", chart.namespace)["spec"]
    address, port = client["clusterIP"], client["ports"][0]["port"]
    # Before a port, an IPv6 address needs brackets.
    both = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    linked = agent_pod(chart.namespace, "linked", with_config=False)
    variables = linked.environment()
    assert variables["LATTICE_RDZV_CLIENT_SERVICE_HOST"] == address
    assert variables["LATTICE_RDZV_CLIENT_SERVICE_PORT"] == str(port)
    assert variables["LATTICE_RDZV_CLIENT_PORT"] == f"tcp://{both}"
    assert linked.finds() == f"http://{both}"

    say(f"in a pod: {linked('python3', '-c', JOIN).strip()}")

    unconfigured = agent_pod(chart.namespace, "unconfigured", with_config=False, enableServiceLinks=False)
    assert unconfigured.finds() == f"http://lattice-rdzv-client.{chart.namespace}.svc.cluster.local.:2379"

    by_name = f"http://lattice-rdzv-client.{chart.namespace}.svc:2379"
    configured = agent_pod(chart.namespace, "configured", enableServiceLinks=False)
    assert "LATTICE_RDZV_CLIENT_PORT" not in configured.environment()
    assert configured.environment()["LATTICE_RDZV_BACKEND"] == "etcd"
    assert configured.finds() == by_name
    assert agent_pod(elsewhere, "elsewhere").finds() == by_name
    on_the_host = agent_pod(chart.namespace, "on-the-host", hostNetwork=True)
    assert on_the_host.environment()["LATTICE_RDZV_ENDPOINTS"] == by_name
    assert on_the_host.finds() == f"http://{both}"
    chart.uninstall()
    assert objects_in(cluster, elsewhere) == set()
