"""A real torch job in pods, and the events that happen to pods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from e2e.agents import Job, forget_id
from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob, MakeNamespace
from e2e.kubernetes import Object

pytestmark = pytest.mark.timeout(900, func_only=True)


def test_job_grows_loses_pods_shrinks_and_ends(
    cluster: Cluster, chart: Chart, job: MakeJob, say: Callable[[str], None]
) -> None:
    """One Job forms, grows, loses a pod, loses the processes of a container, loses a drained Kubernetes node, shrinks, and
    ends. A pod that is retried after the success exits with status 0."""
    chart.install()
    one = job(chart.namespace, nodes=2, nnodes="2:4", conf="last_call_timeout=3")
    formed = one.world(2)
    assert {line.restart_count for line in formed} == {0}
    # The example's page shows this command.
    status = ("sh", "-c", "lattice-rdzv status $LATTICE_RDZV_ID")
    shown = cluster.kubernetes.execute(chart.namespace, one.pod_of("train-0"), *status)
    assert "train-0" in shown
    assert "train-1" in shown

    before = one.workers()
    one.scale(3)
    grown = one.world(3, besides=before)
    assert all(line.restart_count == 0 for line in grown), "growing costs no restart"

    before = one.workers()
    lost = one.pod_of("train-2")
    cluster.kubernetes("delete", "pod", lost, f"--namespace={chart.namespace}", "--wait=false")
    wait_for_report(one, "train-2 leaving", besides=lost)
    one.world(3, besides=before)
    assert one.pod_of("train-2") != lost, "a replacement has joined"

    if cluster.no_faults:
        say(f"left out: processes that are killed as if memory had run out: {cluster.no_faults}")
    else:
        before = one.workers()
        lost = one.pod_of("train-1")
        victim = cluster.kubernetes.get("pod", lost, chart.namespace)
        (container,) = victim["status"]["containerStatuses"]
        cluster.kill_container(victim["spec"]["nodeName"], container["containerID"])
        wait_for_report(one, "lost train-1", besides=lost)
        one.world(3, besides=before)

    before = one.workers()
    places = {name: cluster.kubernetes.get("pod", name, chart.namespace)["spec"]["nodeName"] for name in one.running()}
    # Of a node with several pods, one line would name all of them.
    alone = [name for name, place in sorted(places.items()) if list(places.values()).count(place) == 1]
    assert alone, f"all pods share Kubernetes nodes: {places}"
    lost = alone[0]
    with drained(cluster, places[lost], one):
        wait_for_report(one, f"{lost.rpartition('-')[0]} leaving", besides=lost)
        one.world(3, besides=before)

    before = one.workers()
    one.scale(2)
    one.world(2, besides=before)

    one.end()
    one.succeeded()
    # A retried pod has the run id of the Job, and finds that the run was closed with success.
    assert "succeeded" in retried(cluster, one)


def wait_for_report(one: Job, text: str, *, besides: str) -> None:
    """Waits until a survivor has logged which node left, and how."""
    one.wait(f"a survivor reports: {text}", lambda: one.said(text, besides=besides))


@contextmanager
def drained(cluster: Cluster, node: str, one: Job) -> Iterator[None]:
    """Drains a Kubernetes node of the Job's pods. No new pod may start there during the context."""
    selector = f"--pod-selector=job-name={one.name}"
    try:
        cluster.kubernetes("drain", node, selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
        yield
    finally:
        cluster.kubernetes("uncordon", node)


def retried(cluster: Cluster, one: Job) -> str:
    """Runs one more pod of the Job as it was, which must exit with status 0, and returns its output."""
    manifest = cluster.kubernetes.get("job", one.name, one.namespace)
    spec = manifest["spec"]["template"]["spec"]
    for variable in spec["containers"][0]["env"]:
        if "controller-uid" in json.dumps(variable):
            variable.pop("valueFrom")
            variable["value"] = manifest["metadata"]["uid"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "again", "namespace": one.namespace}, "spec": spec}
    cluster.kubernetes.apply(pod)
    cluster.kubernetes.wait("pod/again", "jsonpath={.status.phase}=Succeeded", one.namespace)
    return cluster.kubernetes("logs", "again", f"--namespace={one.namespace}")


def test_jobs_without_ids_never_share_a_run(
    cluster: Cluster, chart: Chart, namespaces: MakeNamespace, job: MakeJob
) -> None:
    """Two Jobs in two namespaces use one etcd, both without a run id. Both fail with an error that asks for one, before they
    write anything."""
    elsewhere = namespaces("team")
    chart.install({"agents": {"namespaces": [elsewhere]}})
    jobs = [job(namespace, nodes=1, nnodes="1:2", change=without_id) for namespace in (chart.namespace, elsewhere)]
    for one in jobs:
        one.wait("the error names the option for an id", partial(one.said, "--rdzv-id"))
    assert "/lattice/" not in chart.etcdctl("get", "/lattice/", "--prefix", "--keys-only")


def without_id(job: Object) -> None:
    """Removes the id from the agents of a Job, and lets each of its pods fail once."""
    job["spec"]["backoffLimitPerIndex"] = 0
    forget_id(job["spec"]["template"]["spec"]["containers"][0])
