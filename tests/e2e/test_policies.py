"""Pod security and quotas, certificates, passwords, and the results of `helm test`."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from chart.authority import Authority
from chart.render import AUTH, MEMBERS, MTLS, Object, merged

from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakePod
from e2e.kubernetes import Failed, is_leaving
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(600, func_only=True)

SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}}


def secret(namespace: str, name: str, data: dict[str, str]) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": encoded}


def with_agents(cluster: Cluster) -> Object:
    """Returns values with which `helm test` runs a rendezvous."""
    return {"agents": {"image": cluster.agent_image}}


def helm_test(chart: Chart) -> str:
    return chart.helm("test", "rdzv", "--timeout=240s")


def test_helm_test_holds_a_rendezvous_in_a_restricted_namespace_with_a_quota(cluster: Cluster, chart: Chart) -> None:
    """Every namespace of these scenarios is restricted. This one also limits the number and the size of its pods."""
    labels = cluster.kubernetes.get("namespace", chart.namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    # The second pod of `helm test` is created while the first one may still be counted.
    hard = {"pods": "3", "requests.cpu": "500m", "requests.memory": "1Gi", "limits.memory": "4Gi"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": chart.namespace}}
    cluster.kubernetes.apply({**quota, "spec": {"hard": hard}})
    chart.install(merged(SMALL, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # An update within the quota: the old pod ends before the new one starts.
    cluster.kubernetes.apply({**quota, "spec": {"hard": {**hard, "pods": "1"}}})
    chart.upgrade({"podAnnotations": {"rolled": "once"}})


def test_helm_test_fails_with_a_broken_service(cluster: Cluster, chart: Chart) -> None:
    chart.install()
    assert "Phase:          Succeeded" in helm_test(chart)
    patch = json.dumps({"spec": {"selector": {"app": "matches-no-pod"}}})
    where = ("service", "lattice-rdzv-client", f"--namespace={chart.namespace}", "--type=merge", f"--patch={patch}")
    cluster.kubernetes("patch", *where)
    # Each Kubernetes node learns the change with its own delay.
    wait_for(
        "all checks fail", lambda: failing(chart) == {"by-variables", "by-name", "each-member"}, timeout_seconds=300
    )


def test_helm_test_fails_with_broken_dns(chart: Chart) -> None:
    """The cluster's DNS does not know the domain of the names. Addresses work, and so do the agents' names without a domain."""
    chart.install({"clusterDomain": "elsewhere.local"})
    wait_for("only the check by name fails", lambda: failing(chart) == {"by-name"}, timeout_seconds=300)


def failing(chart: Chart) -> set[str]:
    """Returns the containers of `helm test` that failed. The command fails if there are any."""
    told = ""
    try:
        helm_test(chart)
    except Failed as failure:
        told = str(failure)
    pod = chart.kubernetes.get("pod", "lattice-rdzv-test-connection", chart.namespace)
    ended = {one["name"]: one["state"].get("terminated", {}) for one in pod["status"]["containerStatuses"]}
    failed = {name for name, end in ended.items() if end.get("exitCode") != 0}
    names_the_pod = re.search(r"(?s)lattice-rdzv-test-connection.*(Failed|failed)", told) is not None
    assert names_the_pod == bool(failed), told
    return failed


@pytest.mark.addresses
def test_certificates_on_both_sides(cluster: Cluster, chart: Chart, tmp_path: Path, agent_pod: MakePod) -> None:
    authority = Authority(tmp_path, namespace=chart.namespace)
    for name in ("rdzv-client-tls", "rdzv-peer-tls"):
        cluster.kubernetes.apply(secret(chart.namespace, name, authority.secret()))
    chart.install(merged(MEMBERS, MTLS, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # etcd presents its certificate to every client, but does not serve clients without a certificate.
    mount = {"name": "tls", "mountPath": "/etc/lattice-rdzv/tls", "readOnly": True}
    files = {"secretName": "rdzv-client-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    stranger = agent_pod(
        chart.namespace,
        "stranger",
        mounts=[mount],
        variables={"LATTICE_RDZV_CERT": "", "LATTICE_RDZV_KEY": ""},
        volumes=[{"name": "tls", "secret": files}],
    )
    wait_for(
        "the stranger is denied",
        lambda: "denied access: received fatal alert" in stranger.doctor()["service"]["found"],
        detail=lambda: str(stranger.doctor()),
    )
    # A client with a certificate but without an endpoint finds etcd by the name that the certificate must contain.
    volumes = [{"name": "tls", "secret": {"secretName": "rdzv-client-tls"}}]
    files = {"CACERT": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
    variables = {f"LATTICE_RDZV_{name}": f"{mount['mountPath']}/{file}" for name, file in files.items()}
    unconfigured = {"with_config": False, "enableServiceLinks": False}
    friend = agent_pod(chart.namespace, "friend", mounts=[mount], variables=variables, volumes=volumes, **unconfigured)
    assert friend.finds() == f"https://lattice-rdzv-client.{chart.namespace}.svc.cluster.local.:2379"


def test_upgrade_replaces_the_pod_after_a_change_of_the_ca(cluster: Cluster, chart: Chart, tmp_path: Path) -> None:
    """etcd reads the CA only when it starts."""
    old, new = (Authority(tmp_path, name, namespace=chart.namespace) for name in ("old", "new"))
    name = "rdzv-client-tls"
    cluster.kubernetes.apply(secret(chart.namespace, name, old.secret()))
    chart.install({"tls": {"client": MTLS["tls"]["client"]}})
    first = remaining(chart)
    chart.upgrade()
    assert remaining(chart) == first
    both = {"ca.crt": old.certificate + new.certificate}
    cluster.kubernetes.apply(secret(chart.namespace, name, {**new.secret(), **both}))
    chart.upgrade()
    assert remaining(chart).isdisjoint(first)
    assert "Phase:          Succeeded" in helm_test(chart)


def remaining(chart: Chart) -> set[str]:
    """Returns the identities of the pods that are not about to end."""
    return {one["metadata"]["uid"] for one in chart.pods() if not is_leaving(one)}


@pytest.mark.addresses
def test_users_and_roles(cluster: Cluster, chart: Chart, agent_pod: MakePod) -> None:
    passwords = {"root-password": "of-root", "lattice": "of-all"}
    cluster.kubernetes.apply(secret(chart.namespace, "rdzv-auth", passwords))
    # The agents' image has Python, too, and is available without a registry.
    chart.install(merged(AUTH, {"auth": {"image": cluster.agent_image}}, with_agents(cluster)))
    assert "Phase:          Succeeded" in helm_test(chart)
    # Clients without a password are refused.
    with pytest.raises(Failed, match="user name is empty"):
        chart.etcdctl("put", "/lattice/rdzv/default/x", "y")
