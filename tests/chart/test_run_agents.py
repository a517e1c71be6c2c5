"""The rendered etcd as agents and Prometheus see it. tests/e2e runs `helm test` in pods."""

from __future__ import annotations

import re
from typing import Any

import pytest

from chart.cluster import Cluster
from chart.conftest import MakeCluster
from chart.render import AUTH, MEMBERS, MTLS, Renderer, merged
from chart.tools import CHART, ROOT

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

MONITORING = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}
# A user that may read and write only the runs of one tenant.
USERS = {"auth": {"users": [{"name": "lattice", "tenant": "vision"}]}}
CLOSED: dict[str, Any] = merged(MEMBERS, MTLS, AUTH, USERS)


def test_every_metric_of_an_alert_is_one_that_etcd_has(cluster: MakeCluster, version: str) -> None:
    one = started(cluster(MONITORING, version))
    pod = one.pods[0]
    # Histograms without values are not in the metrics.
    assert pod.etcd.execute("etcdctl", "put", "x", "1").returncode == 0
    port = one.objects.get("Service", "lattice-rdzv-metrics")["spec"]["ports"][0]
    status, text = pod.get("/metrics", pod.etcd.ports[port["targetPort"]])
    assert status == 200
    exposed = set(re.findall(r"^([a-z_]+)(?:\{|\s)", text, re.MULTILINE))
    rules = one.objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]
    named = {name for rule in rules for name in re.findall(r"\b([a-z_]+)\{", rule["expr"])} - {"up"}
    assert len(named) > 5
    assert named <= exposed, named - exposed
    # The alert uses the quota of the values.
    quota = re.search(r"^etcd_server_quota_backend_bytes (\S+)$", text, re.MULTILINE)
    assert quota is not None
    assert float(quota[1]) == float(one.objects.flags["quota-backend-bytes"])


def test_agents_use_the_configmap() -> None:
    """The package's own sources know every name in the ConfigMap."""
    sources = (ROOT / "src" / "discovery" / "mod.rs").read_text() + (ROOT / "src" / "settings" / "keys.rs").read_text()
    known = set(re.findall(r'"(LATTICE_[A-Z_]+)"', sources))
    variables = Renderer().objects(merged(CLOSED, {"agents": {"tenant": "vision"}})).agents
    assert len(variables) == 8
    assert variables.keys() <= known, variables.keys() - known
    readme = (CHART / "README.md").read_text()
    assert all(name in readme or f"`_{name.rsplit('_', 1)[1]}`" in readme for name in variables)


def started(one: Cluster) -> Cluster:
    one.start()
    one.wait_ready()
    return one
