"""From 0.1.0: the objects it made and those of today differ in nothing that Kubernetes lets nobody change."""

from typing import Any

import pytest

from chart.published import published
from chart.render import MEMBERS, Object, Renderer, merged
from chart.tools import HELM_VERSIONS


def fixed(one: Object) -> dict[str, Any]:
    """What of an object no update may change."""
    spec = one.get("spec", {})
    out = {"apiVersion": one["apiVersion"], "namespace": one["metadata"]["namespace"]}
    if one["kind"] == "Deployment":
        out["selector"] = spec["selector"]
    if one["kind"] == "Service":
        # A Service with an address keeps it: only its being headless or not is fixed.
        out["headless"] = spec.get("clusterIP") == "None"
    if one["kind"] == "StatefulSet":
        out.update(
            {key: spec.get(key) for key in ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")}
        )
    return out


@pytest.mark.parametrize("release", ["rdzv", "lattice-rdzv"])
@pytest.mark.parametrize("version", HELM_VERSIONS)
def test_an_upgrade_changes_what_may_change(version: str, release: str) -> None:
    credentials = {"jfrog": {"username": "u", "password": "p"}}
    before, after = published(), Renderer(version, release=release).objects(credentials)
    assert before.names() == after.names()
    for kind, name in before.names():
        assert fixed(before.get(kind, name)) == fixed(after.get(kind, name)), name


def test_what_users_call_stays() -> None:
    """Ports by name and number, in their order, and the one key of the ConfigMap."""
    before, after = published(), Renderer().objects()
    for name in ("lattice-rdzv-client", "lattice-rdzv-server"):
        ports = [
            [(port["name"], port["port"]) for port in objects.get("Service", name)["spec"]["ports"]]
            for objects in (before, after)
        ]
        assert ports[0] == ports[1]
    assert before.agents.items() <= after.agents.items()


def test_an_upgrade_never_runs_two_etcds_and_helm_waits_for_the_new_one() -> None:
    """Helm does not wait for a Deployment that may be without any pod, as `maxUnavailable: 1` of one replica allows."""
    assert Renderer().objects().workload["spec"]["strategy"] == {"type": "Recreate"}


def test_the_old_pods_leave_the_services_at_once() -> None:
    """They have no label of ours, and a Service of today asks for one: agents never meet in two stores."""
    old = published().pod["metadata"]["labels"].items()
    for name in ("lattice-rdzv-client", "lattice-rdzv-server"):
        assert not Renderer().objects().get("Service", name)["spec"]["selector"].items() <= old


def test_volumes_are_claimed_alike_whatever_else_changes() -> None:
    """Claims cannot be changed, so nothing but the values about them is in them."""
    around = {"commonLabels": {"a": "b"}, "podLabels": {"c": "d"}, "image": "quay.io/coreos/etcd:v3.7.3"}
    before = Renderer(release="rdzv").objects(MEMBERS).workload
    after = Renderer(release="another").objects(merged(MEMBERS, around)).workload
    assert fixed(before) == fixed(after)
