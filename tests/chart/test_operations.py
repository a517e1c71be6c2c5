"""Disruption budgets, spread, NetworkPolicy and monitoring, as they are rendered."""

from __future__ import annotations

import re
from typing import Any

import pytest

from chart.render import MEMBERS, Objects, Renderer, merged
from chart.tools import CHART

POLICY = {"networkPolicy": {"enabled": True}}
MONITORING = {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}
ONE = [{}, {"persistence": {"enabled": True}}, {"ephemeral": {"medium": "Memory"}}]


@pytest.mark.parametrize("values", ONE)
def test_one_member_has_no_budget_that_a_drain_would_wait_for(values: dict[str, Any]) -> None:
    assert "PodDisruptionBudget" not in Renderer().objects(values).kinds()


@pytest.mark.parametrize(("kubernetes", "version"), [("1.18.0", "policy/v1beta1"), ("1.21.0", "policy/v1")])
def test_several_members_have_one_of_their_own(kubernetes: str, version: str) -> None:
    objects = Renderer(kubernetes=kubernetes).objects(MEMBERS)
    budget = objects.get("PodDisruptionBudget")
    assert budget["apiVersion"] == version
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"].items() <= objects.pod["metadata"]["labels"].items()


def test_several_members_are_kept_apart_where_that_is_possible() -> None:
    spec = Renderer().objects(MEMBERS).pod["spec"]
    (term,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    (constraint,) = spec["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == (
        "topology.kubernetes.io/zone",
        "ScheduleAnyway",
    )
    assert "affinity" not in Renderer().objects().pod["spec"]


def test_members_in_production_are_kept_apart_for_certain() -> None:
    """By labels that their pods bear, or nothing would be apart."""
    objects = Renderer().objects(None, CHART / "values-production.yaml")
    labels, spec = objects.pod["metadata"]["labels"], objects.pod["spec"]
    (term,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (constraint,) = spec["topologySpreadConstraints"]
    assert (term["topologyKey"], constraint["topologyKey"]) == ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    for rule in (term, constraint):
        assert rule["labelSelector"]["matchLabels"].items() <= labels.items()


def test_your_own_etcd_is_only_what_agents_read() -> None:
    values = {"external": {"endpoints": ["http://etcd-1:2379", "etcd-2:2379"]}}
    objects = Renderer().objects(values)
    assert objects.names() == {("ConfigMap", "lattice-rdzv-config")}
    assert objects.agents == {
        "LATTICE_RDZV_BACKEND": "etcd",
        "LATTICE_RDZV_ENDPOINTS": "http://etcd-1:2379,etcd-2:2379",
    }


# --- NetworkPolicy


def allowed(objects: Objects, port: str) -> list[dict[str, Any]]:
    """Who may come to a port."""
    rules = objects.get("NetworkPolicy")["spec"]["ingress"]
    return [peer for rule in rules if {"port": port} in rule["ports"] for peer in rule["from"]]


def test_by_default_agents_of_the_own_namespace_and_the_named_ones_come_in() -> None:
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
        "empty: anybody"
    )


def test_selected_namespaces_come_in_beside_the_own_and_the_named_ones() -> None:
    """All three at once, but of each only the pods that are selected; else there are the test's and the store's own."""
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


def test_the_pods_of_the_test_bear_the_label_that_lets_them_in() -> None:
    hooks = Renderer().hooks({"agents": {"image": "agent:1"}, **POLICY})
    assert len(hooks.all) == 2
    assert {hook["metadata"]["labels"]["app"] for hook in hooks.all} == {"lattice-rdzv-test"}


# --- agents elsewhere


def test_the_same_is_told_in_every_namespace_of_agents() -> None:
    authority = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    values = {
        "agents": {"namespaces": ["team-a", "lattice"], "tenant": "vision"},
        "tls": {"client": {"enabled": True, "existingSecret": "s", "caCertificate": authority}},
    }
    objects = Renderer().objects(values)
    for name in ("lattice-rdzv-config", "lattice-rdzv-ca"):
        own, theirs = (
            objects.get("ConfigMap", name, namespace=namespace)["data"] for namespace in ("lattice", "team-a")
        )
        assert own == theirs
    assert objects.get("ConfigMap", "lattice-rdzv-ca")["data"] == {"ca.crt": authority}
    assert len([one for one in objects.all if one["kind"] == "ConfigMap"]) == 4


def test_every_key_can_be_a_variable() -> None:
    """One that cannot is left out by `envFrom` without a word to the agent."""
    keys = Renderer().objects({"agents": {"tenant": "t"}}).agents
    assert all(re.fullmatch("[A-Z_]+", key) for key in keys)


# --- alerts


def test_alerts_are_about_the_targets_of_the_service_monitor() -> None:
    objects = Renderer().objects(MONITORING)
    service = objects.get("Service", "lattice-rdzv-metrics")
    monitor = objects.get("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    for rule in objects.get("PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert rule["expr"].count("{") == rule["expr"].count('{namespace="lattice",service="lattice-rdzv-metrics"}')
        assert rule["annotations"].keys() == {"summary", "description"}
