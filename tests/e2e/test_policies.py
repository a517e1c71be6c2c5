"""What clusters ask of pods, certificates, passwords, and what `helm test` tells."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from chart.authority import Authority
from chart.render import AUTH, MEMBERS, MTLS, Object, merged
from harness.wait import wait_for

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakePod
from e2e.kubernetes import Failed

pytestmark = pytest.mark.timeout(600, func_only=True)

SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}}


def secret(namespace: str, name: str, data: dict[str, str]) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": encoded}


def with_agents(cluster: Cluster) -> Object:
    """Values under which `helm test` holds a rendezvous."""
    return {"agents": {"image": cluster.agent_image}}


def helm_test(chart: Chart) -> str:
    return chart.helm("test", "rdzv", "--timeout=120s")


@pytest.mark.addresses
def test_helm_test_holds_a_rendezvous_in_a_restricted_namespace_with_a_quota(cluster: Cluster, chart: Chart) -> None:
    """Every namespace of these stories is restricted; here the number and size of pods is bounded too."""
    labels = cluster.kubernetes.get("namespace", chart.namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    # The second pod of `helm test` is made while the first one may still be counted.
    hard = {"pods": "3", "requests.cpu": "500m", "requests.memory": "1Gi", "limits.memory": "4Gi"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": chart.namespace}}
    cluster.kubernetes.apply({**quota, "spec": {"hard": hard}})
    chart.install(merged(SMALL, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # A roll within the quota: the old pod goes before the new one comes.
    cluster.kubernetes.apply({**quota, "spec": {"hard": {**hard, "pods": "1"}}})
    chart.upgrade({"podAnnotations": {"rolled": "once"}})


def test_helm_test_fails_with_a_broken_service(cluster: Cluster, chart: Chart) -> None:
    chart.install()
    assert "Phase:          Succeeded" in helm_test(chart)
    patch = json.dumps({"spec": {"selector": {"app": "nobody"}}})
    where = ("service", "lattice-rdzv-client", f"--namespace={chart.namespace}", "--type=merge", f"--patch={patch}")
    cluster.kubernetes("patch", *where)
    wait_for("nobody is reached through the Service", lambda: not serves(chart, "lattice-rdzv-client"))
    assert failing(chart) == {"by-variables", "by-name", "each-member"}


def test_helm_test_fails_with_broken_dns(chart: Chart) -> None:
    """Names of a domain that the cluster's DNS does not know. The address works, and so do the names that agents get, which have no domain."""
    chart.install({"clusterDomain": "elsewhere.local"})
    assert failing(chart) == {"by-name"}


def serves(chart: Chart, service: str) -> bool:
    """Whether the store is reached through a Service."""
    endpoint = f"http://{service}.{chart.namespace}.svc.cluster.local:2379"
    try:
        chart.etcdctl(f"--endpoints={endpoint}", "--command-timeout=2s", "endpoint", "health")
    except Failed:
        return False
    return True


def failing(chart: Chart) -> set[str]:
    """What `helm test` asked in vain."""
    with pytest.raises(Failed, match=r"(?s)lattice-rdzv-test-connection.*(Failed|failed)"):
        helm_test(chart)
    pod = chart.kubernetes.get("pod", "lattice-rdzv-test-connection", chart.namespace)
    ended = {one["name"]: one["state"]["terminated"]["exitCode"] for one in pod["status"]["containerStatuses"]}
    return {name for name, status in ended.items() if status != 0}


@pytest.mark.addresses
def test_certificates_on_both_sides(cluster: Cluster, chart: Chart, tmp_path: Path, agent_pod: MakePod) -> None:
    authority = Authority(tmp_path, namespace=chart.namespace)
    for name in ("rdzv-client-tls", "rdzv-peer-tls"):
        cluster.kubernetes.apply(secret(chart.namespace, name, authority.secret()))
    chart.install(merged(MEMBERS, MTLS, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # The store shows its certificate to anybody, and serves nobody who shows none.
    mount = {"name": "tls", "mountPath": "/etc/lattice-rdzv/tls", "readOnly": True}
    files = {"secretName": "rdzv-client-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    stranger = agent_pod(
        chart.namespace,
        "stranger",
        mounts=[mount],
        variables={"LATTICE_RDZV_CERT": "", "LATTICE_RDZV_KEY": ""},
        volumes=[{"name": "tls", "secret": files}],
    )
    findings = stranger.doctor()
    assert findings["settings"]["status"] == "ok", findings
    assert findings["service"]["status"] == "fail", findings
    assert "refuses us: received fatal alert" in findings["service"]["found"], findings
    # Who shows one and is told no endpoint finds it by the name that the certificate has to hold.
    volumes = [{"name": "tls", "secret": {"secretName": "rdzv-client-tls"}}]
    files = {"CACERT": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
    variables = {f"LATTICE_RDZV_{name}": f"{mount['mountPath']}/{file}" for name, file in files.items()}
    guessing = {"with_config": False, "enableServiceLinks": False}
    friend = agent_pod(chart.namespace, "friend", mounts=[mount], variables=variables, volumes=volumes, **guessing)
    assert friend.finds() == f"https://lattice-rdzv-client.{chart.namespace}.svc.cluster.local.:2379"


@pytest.mark.addresses
def test_users_and_roles(cluster: Cluster, chart: Chart, agent_pod: MakePod) -> None:
    passwords = {"root-password": "of-root", "lattice": "of-all"}
    cluster.kubernetes.apply(secret(chart.namespace, "rdzv-auth", passwords))
    # The agents' image has a Python too, and is there where no registry is.
    chart.install(merged(AUTH, {"auth": {"image": cluster.agent_image}}, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # The store is closed to who brings no password.
    with pytest.raises(Failed, match="user name is empty"):
        chart.etcdctl("put", "/lattice/rdzv/default/x", "y")
