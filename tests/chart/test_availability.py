"""What keeps members up and apart, as it is rendered; and that nothing of it is there for an etcd of yours."""

from __future__ import annotations

from typing import Any

import pytest

from chart.render import MEMBERS, Renderer
from chart.tools import CHART

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
