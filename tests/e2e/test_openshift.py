"""The rule of OpenShift's policy `restricted-v2` about users and groups, enforced by the API server: a pod must not choose them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from chart.render import Object, Renderer, parse

from e2e.agents import idle_pod
from e2e.chart import Chart, without_tests
from e2e.cluster import Cluster
from e2e.kubernetes import Failed
from e2e.test_example import copied
from e2e.test_policies import SMALL
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(600, func_only=True)

# The chart recognizes OpenShift by this API.
OPENSHIFT = ("--api-versions", "security.openshift.io/v1")
MESSAGE = "OpenShift assigns users and groups"


def policy(namespace: str) -> list[Object]:
    """Returns a policy that refuses pods of a namespace if they choose a user or a group. OpenShift assigns both from a range."""
    name = f"assigned-{namespace}"
    version = "admissionregistration.k8s.io/v1"
    chosen = ("runAsUser", "fsGroup")
    own = " && ".join(f"!has(object.spec.securityContext.{key})" for key in chosen)
    rules = [
        f"!has(object.spec.securityContext) || ({own})",
        "object.spec.containers.all(one, !has(one.securityContext) || !has(one.securityContext.runAsUser))",
    ]
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return [
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"namespaceSelector": where, "resourceRules": [pods]},
                "validations": [{"expression": rule, "message": MESSAGE} for rule in rules],
            },
        },
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


@pytest.fixture
def refusing(cluster: Cluster, chart: Chart) -> Iterator[Chart]:
    """Provides a chart in a namespace where the API server enforces the rule."""
    objects = policy(chart.namespace)
    cluster.kubernetes.apply(*objects)
    pod = json.dumps(idle_pod(cluster.agent_image, "chooses-a-user", chart.namespace))

    def is_enforced() -> bool:
        try:
            cluster.kubernetes("create", "--dry-run=server", "--filename=-", text=pod)
        except Failed as error:
            return MESSAGE in str(error)
        return False

    try:
        wait_for("the policy is enforced", is_enforced, timeout_seconds=60)
        yield chart
    finally:
        for one in objects:
            cluster.kubernetes("delete", one["kind"], one["metadata"]["name"])


def test_chart_leaves_users_and_groups_to_openshift(cluster: Cluster, refusing: Chart) -> None:
    """On other platforms, the chart sets them, and the policy refuses its pods. The image of the embedded server sets a user."""
    values = {"engine": "embedded", "image": cluster.agent_image, **SMALL}
    apply = partial(refusing.kubernetes, "apply", "--filename=-")
    for arguments, admitted in ((), False), (OPENSHIFT, True):
        rendered = Renderer(namespace=refusing.namespace, arguments=arguments).text(values)
        apply(text=without_tests(rendered))
        if admitted:
            refusing.roll_out()
        else:
            wait_for("the pod is refused", lambda: MESSAGE in refusal(refusing))
            assert refusing.pods() == []


def test_examples_job_leaves_users_and_groups_to_openshift(cluster: Cluster, refusing: Chart, tmp_path: Path) -> None:
    create = partial(cluster.kubernetes, "create", "--dry-run=server", "--filename=-")
    pod = json.dumps(pod_of_example(cluster, copied(cluster, tmp_path / "as-it-is", "job"), refusing.namespace))
    with pytest.raises(Failed, match=MESSAGE):
        create(text=pod)
    example = copied(cluster, tmp_path / "changed", "job")
    with (example / "kustomization.yaml").open("a") as kustomization:
        kustomization.write("components: [../openshift]\n")
    create(text=json.dumps(pod_of_example(cluster, example, refusing.namespace)))


def pod_of_example(cluster: Cluster, example: Path, namespace: str) -> Object:
    """Returns a pod of the example's Job, as kustomize renders it."""
    (job,) = [one for one in parse(cluster.kubernetes("kustomize", str(example))) if one["kind"] == "Job"]
    metadata = {"name": "train-0", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": job["spec"]["template"]["spec"]}


def refusal(chart: Chart) -> str:
    """Returns why the Deployment has no pods."""
    deployment = chart.kubernetes.get("deployment", "lattice-rdzv", chart.namespace)
    conditions = deployment.get("status", {}).get("conditions", [])
    return " ".join(one.get("message", "") for one in conditions if one["type"] == "ReplicaFailure")
