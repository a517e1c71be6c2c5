"""Upgrades from 0.1.0: the present objects do not change any immutable field of the objects of 0.1.0."""

from typing import Any

import pytest

from chart.published import published
from chart.render import MEMBERS, Object, Renderer, merged
from chart.tools import HELM_VERSIONS


def fixed(one: Object) -> dict[str, Any]:
    """Returns the fields of an object that an update must not change."""
    spec = one.get("spec", {})
    out = {"apiVersion": one["apiVersion"], "namespace": one["metadata"]["namespace"]}
    if one["kind"] == "Deployment":
        out["selector"] = spec["selector"]
    if one["kind"] == "Service":
        # A Service keeps its address, so only the choice of a headless Service is immutable.
        out["headless"] = spec.get("clusterIP") == "None"
    if one["kind"] == "StatefulSet":
        out.update(
            {key: spec.get(key) for key in ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")}
        )
    return out


@pytest.mark.parametrize("release", ["rdzv", "lattice-rdzv"])
@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_upgrade_changes_no_immutable_field(version: str, release: str) -> None:
    credentials = {"jfrog": {"username": "u", "password": "p"}}
    before, after = published(), Renderer(version, release=release).objects(credentials)
    assert before.names() == after.names()
    for kind, name in before.names():
        assert fixed(before.get(kind, name)) == fixed(after.get(kind, name)), name


def test_interface_of_users_is_unchanged() -> None:
    """It consists of the names, numbers and order of the ports, and the keys of the ConfigMap."""
    before, after = published(), Renderer().objects()
    for name in ("lattice-rdzv-client", "lattice-rdzv-server"):
        ports = [
            [(port["name"], port["port"]) for port in objects.get("Service", name)["spec"]["ports"]]
            for objects in (before, after)
        ]
        assert ports[0] == ports[1]
    assert before.agents.items() <= after.agents.items()


def test_upgrade_never_runs_two_etcds_and_helm_waits_for_the_new_one() -> None:
    """Helm does not wait for a Deployment that may have no pod, as `maxUnavailable: 1` allows with one replica."""
    assert Renderer().objects().workload["spec"]["strategy"] == {"type": "Recreate"}


def test_services_do_not_select_the_old_pods() -> None:
    """The new selectors need a label that the old pods do not have, so agents never use two etcds at a time."""
    old = published().pod["metadata"]["labels"].items()
    for name in ("lattice-rdzv-client", "lattice-rdzv-server"):
        assert not Renderer().objects().get("Service", name)["spec"]["selector"].items() <= old


def test_only_values_about_volumes_change_the_claims() -> None:
    """The templates of claims are immutable, so they must not depend on other values."""
    around = {"commonLabels": {"a": "b"}, "podLabels": {"c": "d"}, "image": "quay.io/coreos/etcd:v3.7.3"}
    before = Renderer(release="rdzv").objects(MEMBERS).workload
    after = Renderer(release="another").objects(merged(MEMBERS, around)).workload
    assert fixed(before) == fixed(after)
