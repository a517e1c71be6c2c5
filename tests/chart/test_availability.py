"""Rendered objects that keep members available and on separate Kubernetes nodes. An external etcd needs none of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from chart.render import MEMBERS, Renderer, merged
from chart.tools import CHART

ONE = [{}, {"persistence": {"enabled": True}}, {"ephemeral": {"medium": "Memory"}}]


@pytest.mark.parametrize("values", ONE)
def test_one_member_has_no_budget_that_a_drain_would_wait_for(values: dict[str, Any]) -> None:
    assert "PodDisruptionBudget" not in Renderer().objects(values).kinds()


@pytest.mark.parametrize(("kubernetes", "version"), [("1.18.0", "policy/v1beta1"), ("1.21.0", "policy/v1")])
def test_several_members_have_a_budget(kubernetes: str, version: str) -> None:
    objects = Renderer(kubernetes=kubernetes).objects(MEMBERS)
    budget = objects.get("PodDisruptionBudget")
    assert budget["apiVersion"] == version
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"].items() <= objects.pod["metadata"]["labels"].items()


def test_several_members_are_spread_if_possible() -> None:
    spec = Renderer().objects(MEMBERS).pod["spec"]
    terms = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    keys = [term["podAffinityTerm"]["topologyKey"] for term in terms]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    (constraint,) = spec["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == (
        "topology.kubernetes.io/zone",
        "ScheduleAnyway",
    )
    assert "affinity" not in Renderer().objects().pod["spec"]


def test_node_affinity_keeps_members_apart() -> None:
    wanted: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
    affinity = Renderer().objects(merged(MEMBERS, {"affinity": {"nodeAffinity": wanted}})).pod["spec"]["affinity"]
    assert affinity["nodeAffinity"] == wanted
    assert affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    own: dict[str, Any] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    assert Renderer().objects(merged(MEMBERS, {"affinity": own})).pod["spec"]["affinity"] == own


def test_single_member_leaves_a_lost_kubernetes_node_after_30_seconds() -> None:
    """With Kubernetes' default of five minutes, there would be no etcd for five minutes."""
    seconds = {one["key"]: one["tolerationSeconds"] for one in Renderer().objects().pod["spec"]["tolerations"]}
    assert seconds == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}
    assert "tolerations" not in Renderer().objects(MEMBERS).pod["spec"]
    own = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}, {"key": "gpu"}]
    tolerations = Renderer().objects({"tolerations": own}).pod["spec"]["tolerations"]
    assert tolerations[:2] == own
    assert [one["key"] for one in tolerations[2:]] == ["node.kubernetes.io/not-ready"]


def test_commented_annotations_for_autoscalers_can_be_used_as_they_are() -> None:
    text = (CHART / "values.yaml").read_text().split("podAnnotations: {}\n")[1].split("\n\n")[0]
    annotations = yaml.safe_load(re.sub(r"^ *# ", "", text, flags=re.MULTILINE))
    assert annotations == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    for values in ({}, MEMBERS):
        pod = Renderer().objects(merged(values, {"podAnnotations": annotations})).pod
        assert annotations.items() <= pod["metadata"]["annotations"].items()


def test_openshift_assigns_users_and_groups() -> None:
    """OpenShift's policy `restricted-v2` refuses a pod that sets them. Values of the user are kept."""
    openshift = Renderer(arguments=("--api-versions", "security.openshift.io/v1"))
    context = openshift.objects().pod["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    chosen = openshift.objects({"podSecurityContext": {"runAsUser": 1000650000}}).pod["spec"]["securityContext"]
    assert chosen["runAsUser"] == 1000650000
    assert Renderer().objects().pod["spec"]["securityContext"]["runAsUser"] == 10001


def test_cluster_of_several_members_has_a_unique_identity() -> None:
    """After a reinstallation, the Services have new addresses, which are the identity. Renders are identical nevertheless."""
    values = merged(MEMBERS, {"clientService": {"name": "clients"}})
    objects = Renderer().objects(values)
    token = "lattice-rdzv-$(CLIENTS_SERVICE_HOST)-$(LATTICE_RDZV_SERVER_SERVICE_HOST)"
    assert objects.flags["initial-cluster-token"] == token
    assert objects.pod["spec"]["enableServiceLinks"] is True
    # The kubelet does not start a container whose `subPathExpr` has an unknown variable.
    (gate,) = [mount for mount in objects.etcd["volumeMounts"] if mount["name"] == "token"]
    assert gate["subPathExpr"] == "$(CLIENTS_SERVICE_HOST)/$(LATTICE_RDZV_SERVER_SERVICE_HOST)"
    assert objects.all == Renderer().objects(values).all


def test_peer_urls_cannot_change() -> None:
    """Their parts are in the StatefulSet's selector, which the API server refuses to change."""
    tls = {"tls": {"peer": {"enabled": True, "existingSecret": "rdzv-peer-tls"}}}
    port = {"serverService": {"serverPort": {"internalPort": 3380}}}
    changed = [Renderer().objects(merged(MEMBERS, one)) for one in ({}, tls, port, {"clusterDomain": "corp.example"})]
    selectors = [tuple(one.workload["spec"]["selector"]["matchLabels"].items()) for one in changed]
    assert len(set(selectors)) == 4
    for objects, selector in zip(changed, selectors, strict=True):
        assert set(selector) <= objects.pod["metadata"]["labels"].items()
        (template,) = objects.workload["spec"]["volumeClaimTemplates"]
        assert (template["apiVersion"], template["kind"]) == ("v1", "PersistentVolumeClaim")


def test_without_a_quorum_no_member_is_evicted() -> None:
    budget = Renderer().objects(MEMBERS).get("PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "IfHealthyBudget"


def test_members_in_production_never_share_a_kubernetes_node() -> None:
    """The rules must select labels that the pods have, because otherwise they would have no effect."""
    objects = Renderer().objects(None, CHART / "values-production.yaml")
    labels, spec = objects.pod["metadata"]["labels"], objects.pod["spec"]
    (term,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (constraint,) = spec["topologySpreadConstraints"]
    assert (term["topologyKey"], constraint["topologyKey"]) == ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    for rule in (term, constraint):
        assert rule["labelSelector"]["matchLabels"].items() <= labels.items()


def test_external_etcd_renders_only_the_agents_configuration() -> None:
    values = {"external": {"endpoints": ["http://etcd-1:2379", "etcd-2:2379"]}}
    objects = Renderer().objects(values)
    assert objects.names() == {("ConfigMap", "lattice-rdzv-config")}
    assert objects.agents == {
        "LATTICE_RDZV_BACKEND": "etcd",
        "LATTICE_RDZV_ENDPOINTS": "http://etcd-1:2379,etcd-2:2379",
    }
