"""Upgrades from the published 0.1.0 with each Helm, rollbacks, and removals. 0.1.0 is rebuilt from its documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.published import published
from chart.render import MEMBERS, Renderer, merged
from chart.tools import CHART

from e2e.chart import RELEASE, Chart, apply_as_gitops, values_file
from e2e.cluster import Cluster
from e2e.conftest import MakeNamespace
from e2e.kubernetes import Failed, Object, holds, is_leaving
from e2e.test_install import objects_in

pytestmark = pytest.mark.timeout(600, func_only=True)

# The values that a user of 0.1.0 could have.
OLD_VALUES: dict[str, Any] = {
    "replicaCount": 1,
    "jfrog": {"username": "u", "password": "p"},
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    "nodeSelector": {"kubernetes.io/os": "linux"},
}
RESET_THEN_REUSE = "--reset-then-reuse-values"
WAIT = ("--wait", "--timeout=5m")
# What Helm 3 and Helm 4 print when the time for `--wait` is over.
TIMED_OUT = r"UPGRADE FAILED: (context deadline exceeded|timed out waiting|.*not ready\. status: InProgress)"
# Values that etcd does not apply to a running cluster of several members.
CHANGES_OF_THE_CLUSTER: list[dict[str, Any]] = [
    {"replicaCount": 5},
    {"tls": {"peer": {"enabled": True, "existingSecret": "rdzv-peer-tls"}}},
    {"serverService": {"serverPort": {"internalPort": 2390}}},
    {"clusterDomain": "elsewhere.local"},
]


@pytest.fixture(scope="module")
def old_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provides a chart that creates the objects of 0.1.0."""
    folder = tmp_path_factory.mktemp("published") / "lattice-rdzv"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "lattice-rdzv", "version": "0.1.0"}))
    objects = published("lattice").all
    for one in objects:
        one["metadata"]["namespace"] = "{{ .Release.Namespace }}"
    (folder / "templates" / "all.yaml").write_text("\n---\n".join(yaml.safe_dump(one) for one in objects))
    return folder


@pytest.mark.parametrize(
    ("before", "after", "arguments"),
    [
        ("3.22.0", "3.22.0", ()),
        ("3.22.0", "4.3.1", ("--server-side=auto",)),
        ("4.3.1", "4.3.1", ("--server-side=true",)),
        ("3.22.0", "4.3.1", ("--server-side=true", "--force-conflicts")),
        # The values are not passed again, because Helm takes them from the release.
        ("3.22.0", "3.22.0", (RESET_THEN_REUSE,)),
    ],
    ids=["helm-3", "helm-4-auto", "helm-4-server-side", "helm-3-then-4-server-side", "helm-3-its-own"],
)
def test_from_0_1_0_and_back(
    cluster: Cluster, namespaces: MakeNamespace, old_chart: Path, before: str, after: str, arguments: tuple[str, ...]
) -> None:
    old = Chart(cluster.kubernetes, namespace_of_old(namespaces), helm_version=before)
    install_old(old, old_chart)
    namespace = old.namespace
    new = Chart(cluster.kubernetes, namespace, helm_version=after)
    pods = {one["metadata"]["uid"] for one in old.pods()}

    with pytest.raises(Failed, match=r"`--reuse-values` does not add new ones; use `--reset-then-reuse-values`"):
        new.upgrade({}, "--reuse-values")
    new.upgrade({} if RESET_THEN_REUSE in arguments else OLD_VALUES, *arguments, *WAIT)
    assert_ready(new)
    deployment = cluster.kubernetes.get("deployment", "lattice-rdzv", namespace)
    # Server-side apply cannot remove the fields of the strategy that 0.1.0 had by default.
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert deployment["spec"]["strategy"] == (rolling if after.startswith("4") else {"type": "Recreate"})
    spec = deployment["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["nodeSelector"] == OLD_VALUES["nodeSelector"]
    assert spec["containers"][0]["resources"] == OLD_VALUES["resources"]
    assert containers(deployment) == ["etcd"], "0.1.0's own container is gone"
    assert pods.isdisjoint(one["metadata"]["uid"] for one in new.pods() if not is_leaving(one))
    assert "is healthy" in new.etcdctl("endpoint", "health")

    if after.startswith("4"):
        new.upgrade({"podAnnotations": {"upgraded": "again"}}, *arguments, *WAIT)
        assert_ready(new)
        again = cluster.kubernetes.get("deployment", "lattice-rdzv", namespace)
        assert again["spec"]["strategy"] == {"type": "Recreate"}

    new.helm("rollback", RELEASE, "1", *WAIT)
    assert_ready(new)
    assert containers(cluster.kubernetes.get("deployment", "lattice-rdzv", namespace)) == ["etcd-server"]
    new.uninstall()
    assert objects_in(cluster, namespace) == set()
    new.gone()


@pytest.mark.parametrize(
    ("before", "after", "arguments"),
    [
        ("3.22.0", "3.22.0", ()),
        ("3.22.0", "4.3.1", ("--server-side=auto",)),
        ("4.3.1", "4.3.1", ("--server-side=true",)),
    ],
    ids=["helm-3", "helm-4-auto", "helm-4-server-side"],
)
def test_helm_times_out_if_the_new_etcd_never_starts(
    cluster: Cluster, namespaces: MakeNamespace, old_chart: Path, before: str, after: str, arguments: tuple[str, ...]
) -> None:
    """At the upgrade from 0.1.0, and at the next one."""
    old = Chart(cluster.kubernetes, namespace_of_old(namespaces), helm_version=before)
    install_old(old, old_chart)
    new = Chart(cluster.kubernetes, old.namespace, helm_version=after)
    broken = (*arguments, "--set=image=localhost/etcd:v3.5.6", "--wait", "--timeout=15s")
    with pytest.raises(Failed, match=TIMED_OUT):
        new.upgrade(OLD_VALUES, *broken)
    new.upgrade(OLD_VALUES, *arguments, *WAIT)
    assert_ready(new)
    with pytest.raises(Failed, match=TIMED_OUT):
        new.upgrade(OLD_VALUES, *broken)


def test_server_side_apply_replaces_0_1_0_after_the_documented_patch(
    cluster: Cluster, namespaces: MakeNamespace
) -> None:
    """As Argo CD with `ServerSideApply=true`, without Helm."""
    chart = Chart(cluster.kubernetes, namespace_of_old(namespaces))
    apply_as_gitops(chart, yaml.safe_dump_all(published(chart.namespace).all, explicit_start=True))
    chart.roll_out()
    new = Renderer(namespace=chart.namespace).text()
    with pytest.raises(Failed, match=r"spec.strategy.rollingUpdate: Forbidden"):
        apply_as_gitops(chart, new)

    documented = re.search(r"`(kubectl -n lattice patch\s+deployment [^`]+)`", (CHART / "UPGRADING.md").read_text())
    assert documented is not None
    patch = [chart.namespace if word == "lattice" else word for word in shlex.split(documented[1])]
    cluster.kubernetes(*patch[1:])
    apply_as_gitops(chart, new)
    chart.roll_out()
    deployment = cluster.kubernetes.get("deployment", "lattice-rdzv", chart.namespace)
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert containers(deployment) == ["etcd"]
    assert_ready(chart)


def namespace_of_old(namespaces: MakeNamespace) -> str:
    """Returns a new namespace for 0.1.0, which ran as root, with the privileges of its image."""
    return namespaces("upgrade", enforce="privileged")


def install_old(chart: Chart, old_chart: Path) -> None:
    with values_file(OLD_VALUES) as values:
        chart.helm("install", RELEASE, str(old_chart), f"--values={values}")
    chart.roll_out()


def assert_ready(chart: Chart) -> None:
    """Checks that the only pod that does not end is ready now, without waiting."""
    assert [holds("Ready", one) for one in chart.pods() if not is_leaving(one)] == [True]


def containers(deployment: Object) -> list[str]:
    return [one["name"] for one in deployment["spec"]["template"]["spec"]["containers"]]


def test_another_member_count_is_refused_with_an_explanation(cluster: Cluster, chart: Chart) -> None:
    chart.install(MEMBERS)
    with pytest.raises(Failed, match=r"`replicaCount` is 5.*`members-3`.*cluster.allowRecreate=true") as refused:
        chart.upgrade({"replicaCount": 5})
    with pytest.raises(Failed, match=r"use other peer URLs.*`tls.peer.enabled`"):
        chart.upgrade({"tls": {"peer": {"enabled": True, "existingSecret": "rdzv-peer-tls"}}})
    # The API server refuses them, too, even if the chart allows them. Argo CD and Flux cannot look up the running StatefulSet.
    for changed in CHANGES_OF_THE_CLUSTER:
        with pytest.raises(Failed, match=r"(?i)forbidden|immutable"):
            chart.upgrade(merged(changed, {"cluster": {"allowRecreate": True}}))
    assert len([one for one in chart.pods() if not is_leaving(one)]) == 3, refused.value

    # A StatefulSet without pods keeps its selector and its volumes, so the upgrade needs neither another count nor new claims.
    chart.write("put", "/before", "scaled to 0")
    cluster.kubernetes("scale", "statefulset/lattice-rdzv", "--replicas=0", f"--namespace={chart.namespace}")
    chart.gone()
    chart.upgrade({"podAnnotations": {"upgraded": "without pods"}})
    assert "scaled to 0" in chart.etcdctl("get", "/before")
    chart.uninstall()
    claims = {one for one in objects_in(cluster, chart.namespace) if one[0] == "PersistentVolumeClaim"}
    # By default, volumes outlive a release, so that no data is lost by a mistake. See `persistence.whenDeleted`.
    assert objects_in(cluster, chart.namespace) - claims == set()
