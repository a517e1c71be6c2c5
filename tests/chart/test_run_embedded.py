"""The rendered pod of `engine: embedded`, run with the real server, as agents and Prometheus see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from chart.authority import Authority
from chart.cluster import Cluster, open_port
from chart.conftest import MakeCluster, RunCluster
from chart.render import AUTH, EMBEDDED, MTLS, Renderer, merged
from chart.test_run_tls import check_strangers, write_as_stranger
from chart.tools import tool

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

CLIENT_TLS = {"tls": {"client": MTLS["tls"]["client"]}}
PASSWORD = {"auth": AUTH["auth"]}
MONITORING = {"metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def make(run_cluster: RunCluster, authority: Authority) -> MakeCluster:
    def cluster(values: dict[str, Any]) -> Cluster:
        secrets = {"rdzv-client-tls": authority.secret(), "rdzv-auth": {"lattice": "of-agents"}}
        objects = Renderer().objects(merged(EMBEDDED, values))
        # Only etcdctl of this etcd is used, as a client.
        one = run_cluster(objects, tool("etcd-3.6.16"), secrets=secrets)
        one.start()
        one.wait_ready()
        return one

    return cluster


def rendezvous(one: Cluster, values: dict[str, Any]) -> None:
    """Runs the rendered pod of `helm test`, in which two nodes form a world with the server."""
    (hook,) = Renderer().hooks(merged(EMBEDDED, values)).all
    pod = one.add(hook["metadata"]["name"], hook)
    pod.start()
    wait_for("both nodes end", lambda: not pod.running, timeout_seconds=90, detail=pod.describe)
    assert sorted(re.findall(r"^rank (\d) of 2", pod.describe(), re.MULTILINE)) == ["0", "1"], pod.describe()
    assert "Traceback" not in pod.describe()


KINDS: dict[str, dict[str, Any]] = {
    "open": {},
    "mtls": CLIENT_TLS,
    "password": PASSWORD,
    "mtls-password": merged(CLIENT_TLS, PASSWORD),
}


@pytest.mark.parametrize("kind", KINDS)
def test_agents_rendezvous_with_the_server(make: Any, kind: str) -> None:
    one = make(KINDS[kind])
    pod = one.pods[0]
    for probe in ("startup", "liveness", "readiness"):
        assert pod.containers["server"].probe(probe)
    rendezvous(one, KINDS[kind])
    pod.terminate()
    assert not pod.running
    assert "has stopped" in pod.describe()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "open"])
def test_stranger_cannot_write_to_any_port(make: Any, kind: str) -> None:
    pod = make(KINDS[kind]).pods[0]
    server = pod.containers["server"]
    assert [name for name, port in server.ports.items() if open_port(pod, port)] == ["client", "metrics"]
    check_strangers(pod)


def test_stranger_can_write_to_a_server_without_access_control(make: Any) -> None:
    """Without this, the test above would prove nothing."""
    pod = make({}).pods[0]
    wait_for("a stranger writes", lambda: write_as_stranger(pod, "http", 2379), detail=pod.describe)


def test_server_has_every_metric_of_an_alert(make: Any) -> None:
    one = make(MONITORING)
    status, text = one.pods[0].get("/metrics", one.pods[0].containers["server"].ports["metrics"])
    assert status == 200
    exposed = set(re.findall(r"^([a-z_]+)(?:\{|\s)", text, re.MULTILINE))
    rules = one.objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]
    named = {name for rule in rules for name in re.findall(r"\b([a-z_]+)\{", rule["expr"])} - {"up"}
    assert named == {"etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes"}
    assert named <= exposed


def test_changed_password_is_valid_without_a_restart(make: Any) -> None:
    one = make(PASSWORD)
    pod = one.pods[0]
    rendezvous(one, PASSWORD)
    one.secrets["rdzv-auth"]["lattice"] = "another"
    pod.volume("auth")
    # The pod of `helm test` reads the new password from the Secret.
    rendezvous(one, PASSWORD)
    assert pod.running
