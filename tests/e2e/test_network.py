"""Access in a real network: through a NetworkPolicy that is enforced, and to each port of an etcd with access control."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chart.authority import Authority
from chart.render import AUTH, MEMBERS, MTLS, Object, merged

from e2e.agents import AgentPod
from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeNamespace, MakePod
from e2e.kubernetes import HOSTNAME, Failed, takes_pods
from e2e.test_policies import helm_test, secret
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(900, func_only=True)

# Linux may refuse a connection, or a network plugin may drop its packets. In both cases, there is no access.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("open")
except OSError as error:
    print(error)
"""
CLIENT, PEERS, METRICS = 2379, 2380, 2381


def opens(pod: AgentPod, host: str, port: int) -> bool:
    """Returns whether a pod can connect to a port."""
    return pod("python3", "-c", CONNECT, host, str(port)).strip() == "open"


def address_of(chart: Chart) -> str:
    """Returns the address of the only pod of etcd."""
    (pod,) = chart.pods()
    return str(pod["status"]["podIP"])


@pytest.mark.addresses
def test_network_policy_admits_only_agents_and_prometheus(
    cluster: Cluster, chart: Chart, namespaces: MakeNamespace, agent_pod: MakePod
) -> None:
    team, monitoring, elsewhere = (namespaces(purpose) for purpose in ("team", "monitoring", "elsewhere"))
    selector = {"matchLabels": {"kubernetes.io/metadata.name": monitoring}}
    policy = {"networkPolicy": {"enabled": True, "metricsNamespaceSelector": selector}}
    chart.install(merged(policy, {"agents": {"namespaces": [team], "image": cluster.agent_image}}))
    store = address_of(chart)
    agent, friend = agent_pod(chart.namespace), agent_pod(team)
    prometheus, stranger = (agent_pod(one, with_config=False) for one in (monitoring, elsewhere))

    ports = (CLIENT, PEERS, METRICS)
    wanted = {agent: [CLIENT], friend: [CLIENT], prometheus: [METRICS], stranger: []}
    seen: dict[AgentPod, list[int]] = {}

    def are_admitted() -> bool:
        """Returns whether each pod reaches what it must. The network plugin learns the address of a new pod with a short delay."""
        seen.update({pod: [port for port in ports if opens(pod, store, port)] for pod in wanted})
        return seen == wanted

    wait_for("only agents and Prometheus are admitted", are_admitted, detail=lambda: str(list(seen.values())))
    # Agents connect through the Service, so this must work, too.
    for one in (agent, friend):
        one.finds()
    assert "Phase:          Succeeded" in helm_test(chart)


@pytest.mark.addresses
def test_network_policy_admits_clients_from_outside_by_their_address(
    cluster: Cluster, namespaces: MakeNamespace, agent_pod: MakePod
) -> None:
    """The client is a process of a Kubernetes node, which connects to the port on another one."""
    chart = Chart(cluster.kubernetes, namespaces(enforce="privileged"))
    service = {"type": "NodePort", "allowUnauthenticated": True, "externalTrafficPolicy": "Local"}
    elsewhere = {"cidr": "2001:db8::/32" if cluster.family == "ipv6" else "192.0.2.0/24"}
    chart.install({"clientService": service, "networkPolicy": {"enabled": True, "ipBlocks": [elsewhere]}})
    (pod,) = chart.pods()
    store = cluster.kubernetes.get("node", pod["spec"]["nodeName"])
    name = store["metadata"]["name"]
    nodes = [one for one in cluster.kubernetes.list("nodes", "") if takes_pods(one) and one["metadata"]["name"] != name]
    outside = agent_pod(
        namespaces("outside", enforce="privileged"),
        with_config=False,
        hostNetwork=True,
        nodeSelector={HOSTNAME: nodes[0]["metadata"]["name"]},
    )
    (port,) = cluster.kubernetes.get("service", "lattice-rdzv-client", chart.namespace)["spec"]["ports"]

    def is_admitted() -> bool:
        return opens(outside, internal_address(store), port["nodePort"])

    wait_for("another address is denied", lambda: not is_admitted())
    client = internal_address(nodes[0])
    block = {"cidr": f"{client}/{128 if ':' in client else 32}"}
    chart.upgrade({"networkPolicy": {"ipBlocks": [block]}})
    wait_for("its own address is admitted", is_admitted)


def internal_address(node: Object) -> str:
    """Returns the first address of a Kubernetes node in the network of the nodes."""
    return next(str(one["address"]) for one in node["status"]["addresses"] if one["type"] == "InternalIP")


def test_three_members_form_in_a_namespace_that_denies_egress(cluster: Cluster, chart: Chart) -> None:
    metadata = {"name": "nothing-goes-out", "namespace": chart.namespace}
    nothing = {"podSelector": {}, "policyTypes": ["Egress"], "egress": []}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": nothing}
    cluster.kubernetes.apply(policy)
    values = {"networkPolicy": {"enabled": True, "egress": True}, "agents": {"image": cluster.agent_image}}
    chart.install(merged(MEMBERS, values))

    def reach_each_other() -> bool:
        """Uses new connections, because connections from before the network plugin enforced the policy may persist. The plugin
        learns the address of a new pod with a short delay."""
        return chart.etcdctl("endpoint", "health", "--cluster").count("is healthy") == 3

    wait_for("all members reach each other", reach_each_other)
    # Its pods need egress, too.
    assert "Phase:          Succeeded" in helm_test(chart)


# The values of each mode with access control.
CLOSED: dict[str, dict[str, Any]] = {
    "client certificates": {"tls": {"client": MTLS["tls"]["client"]}},
    "certificates on both sides": MTLS,
    "passwords": AUTH,
}
ETCDS = ("v3.4.23", pytest.param("v3.5.35", marks=pytest.mark.addresses), "v3.6.16", "v3.7.3")


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, module_namespaces: MakeNamespace) -> Object:
    """Provides a pod of etcd's image in a separate namespace, in which etcdctl runs without any file or password."""
    namespace = module_namespaces("stranger")
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "etcd",
        "image": "quay.io/coreos/etcd:v3.5.5",
        "command": ["etcd", "--data-dir=/data/etcd"],
        "securityContext": rights,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": user, "terminationGracePeriodSeconds": 1}
    metadata = {"name": "stranger", "namespace": namespace}
    spec["volumes"] = [{"name": "data", "emptyDir": {}}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    cluster.kubernetes.apply(pod)
    cluster.kubernetes.wait("pod/stranger", "condition=Ready", namespace)
    return pod


@pytest.mark.parametrize("tag", ETCDS)
def test_stranger_cannot_write_to_any_port_of_a_closed_etcd(
    cluster: Cluster, namespaces: MakeNamespace, stranger: Object, tmp_path: Path, tag: str
) -> None:
    """Every mode with access control. `helm test`, which has the certificate and the password, has access."""
    cluster.provide_etcd(tag)
    charts = {mode: Chart(cluster.kubernetes, namespaces(mode.replace(" ", "-"))) for mode in CLOSED}
    # In parallel, because each installation mostly waits, and each closed port takes as long as etcdctl's timeout.
    with ThreadPoolExecutor() as pool:
        closed = list(pool.map(partial(endpoints_of_closed, cluster, tmp_path, tag), charts.items()))
        endpoints = [endpoint for of_one in closed for endpoint in of_one]
        wrote = list(pool.map(partial(writes, cluster, stranger), endpoints))
    assert [one for one, written in zip(endpoints, wrote, strict=True) if written] == []


def endpoints_of_closed(cluster: Cluster, folder: Path, tag: str, chart_of_mode: tuple[str, Chart]) -> list[str]:
    """Installs an etcd with access control, and returns an endpoint with and one without TLS for each port of its pod."""
    mode, chart = chart_of_mode
    (own := folder / chart.namespace).mkdir()
    authority = Authority(own, namespace=chart.namespace)
    for name in ("rdzv-client-tls", "rdzv-peer-tls"):
        cluster.kubernetes.apply(secret(chart.namespace, name, authority.secret()))
    cluster.kubernetes.apply(secret(chart.namespace, "rdzv-auth", {"root-password": "of-root", "lattice": "of-all"}))
    image = {"image": f"quay.io/coreos/etcd:{tag}", "auth": {"image": cluster.agent_image}}
    chart.install(merged(image, CLOSED[mode]))
    helm_test(chart)
    (pod,) = chart.pods()
    ports = {port["containerPort"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}
    assert {CLIENT, PEERS, METRICS} <= ports
    address = pod["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    return [f"{scheme}://{host}:{port}" for port in sorted(ports) for scheme in ("http", "https")]


def writes(cluster: Cluster, stranger: Object, endpoint: str) -> bool:
    """Returns whether a write succeeds without a certificate and without a password."""
    options = ("--insecure-skip-tls-verify", "--dial-timeout=2s", "--command-timeout=2s", f"--endpoints={endpoint}")
    put = partial(cluster.kubernetes.execute, stranger["metadata"]["namespace"], "stranger")
    try:
        put("etcdctl", *options, "put", "/lattice/stranger", "was here")
    except Failed:
        return False
    return True
