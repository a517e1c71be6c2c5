"""Rendered NetworkPolicies: the pods that may reach etcd."""

from __future__ import annotations

from typing import Any

from chart.render import MEMBERS, Objects, Renderer, merged

POLICY = {"networkPolicy": {"enabled": True}}


def allowed(objects: Objects, port: str) -> list[dict[str, Any]]:
    """Returns the peers that may connect to a port."""
    rules = objects.get("NetworkPolicy")["spec"]["ingress"]
    return [peer for rule in rules if {"port": port} in rule["ports"] for peer in rule["from"]]


def test_by_default_agents_of_its_namespace_and_of_the_named_ones_are_admitted() -> None:
    objects = Renderer().objects(merged(POLICY, {"agents": {"namespaces": ["team-a"]}}))
    assert (
        objects.get("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items()
        <= objects.pod["metadata"]["labels"].items()
    )
    clients = allowed(objects, "client")
    assert {"podSelector": {}} in clients
    assert {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}},
        "podSelector": {},
    } in clients
    assert all(peer for rule in objects.get("NetworkPolicy")["spec"]["ingress"] for peer in rule["from"]), (
        "an empty peer admits all pods"
    )


def test_selected_namespaces_are_admitted_in_addition() -> None:
    """Only the selected pods of all these namespaces are admitted, and the pods of the test and of etcd."""
    agents = {
        "agentNamespaceSelector": {"matchLabels": {"agents": "true"}},
        "agentPodSelector": {"matchLabels": {"a": "b"}},
    }
    objects = Renderer().objects(
        merged(MEMBERS, POLICY, {"networkPolicy": agents, "agents": {"namespaces": ["team-a"]}})
    )
    pods = {"podSelector": agents["agentPodSelector"]}
    store = {"podSelector": {"matchLabels": {"app": "lattice-rdzv", "lattice-rdzv/store": "members-3"}}}
    assert allowed(objects, "client") == [
        pods,
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}, **pods},
        {"namespaceSelector": agents["agentNamespaceSelector"], **pods},
        {"podSelector": {"matchLabels": {"app": "lattice-rdzv-test"}}},
        store,
    ]
    assert allowed(objects, "server") == [store]


def test_members_and_tests_may_connect_in_a_namespace_that_denies_egress() -> None:
    objects = Renderer().objects(merged(MEMBERS, POLICY, {"networkPolicy": {"egress": True}}))
    members = {"podSelector": {"matchLabels": {"app": "lattice-rdzv", "lattice-rdzv/store": "members-3"}}}
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    policy, test = objects.get("NetworkPolicy")["spec"], objects.get("NetworkPolicy", "lattice-rdzv-test")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    # Without it, egress is not restricted.
    assert Renderer().objects(merged(MEMBERS, POLICY)).get("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress"]
    assert policy["egress"] == [{"to": [members], "ports": [{"port": "client"}, {"port": "server"}]}, dns]
    assert test["egress"][1] == dns
    assert members in test["egress"][0]["to"]
    assert test["podSelector"]["matchLabels"] == {"app": "lattice-rdzv-test"}


def test_clients_outside_of_the_cluster_are_admitted_by_address() -> None:
    block = {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}
    objects = Renderer().objects(merged(POLICY, {"networkPolicy": {"ipBlocks": [block]}}))
    assert {"ipBlock": block} in allowed(objects, "client")
    assert {"ipBlock": block} not in allowed(objects, "metrics")


def test_pods_of_the_test_have_the_label_that_admits_them() -> None:
    hooks = Renderer().hooks({"agents": {"image": "agent:1"}, **POLICY})
    assert len(hooks.all) == 2
    assert {hook["metadata"]["labels"]["app"] for hook in hooks.all} == {"lattice-rdzv-test"}
