"""A real torch job in pods, through everything that happens to pods."""

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


def test_a_job_grows_loses_pods_shrinks_and_ends(
    cluster: Cluster, chart: Chart, job: MakeJob, say: Callable[[str], None]
) -> None:
    """One Job's life: it forms, grows, loses a pod, loses a container's processes, loses a machine to a drain, shrinks,
    ends; and a pod that is tried again after success ends with 0."""
    chart.install()
    one = job(chart.namespace, nodes=2, nnodes="2:4", conf="last_call_timeout=3")
    formed = one.world(2)
    assert {line.restart_count for line in formed} == {0}
    # As the example's page says how to see the run.
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
    told(one, "train-2 leaving", by_others_than=lost)
    one.world(3, besides=before)
    assert one.pod_of("train-2") != lost, "a replacement has joined"

    if cluster.no_faults:
        say(f"left out: processes killed as by OOM: {cluster.no_faults}")
    else:
        before = one.workers()
        lost = one.pod_of("train-1")
        victim = cluster.kubernetes.get("pod", lost, chart.namespace)
        (container,) = victim["status"]["containerStatuses"]
        cluster.kill_container(victim["spec"]["nodeName"], container["containerID"])
        told(one, "lost train-1", by_others_than=lost)
        one.world(3, besides=before)

    before = one.workers()
    places = {name: cluster.kubernetes.get("pod", name, chart.namespace)["spec"]["nodeName"] for name in one.running()}
    lost = one.pod_of("train-1")
    assert set(places.values()) != {places[lost]}, "some are elsewhere, who can be told"
    with drained(cluster, places[lost], one):
        told(one, "train-1 leaving", by_others_than=lost)
        one.world(3, besides=before)

    before = one.workers()
    one.scale(2)
    one.world(2, besides=before)

    one.end()
    one.succeeded()
    # One that is tried again finds the run closed with success, and its submission the same.
    assert "succeeded" in retried(cluster, one)


def told(one: Job, news: str, *, by_others_than: str) -> None:
    """Waits until a survivor has said who went, and how."""
    one.wait(f"survivors are told: {news}", lambda: one.said(news, besides=by_others_than))


@contextmanager
def drained(cluster: Cluster, node: str, one: Job) -> Iterator[None]:
    """A node that the Job's pods have to leave, and where none may come."""
    selector = f"--pod-selector=job-name={one.name}"
    try:
        cluster.kubernetes("drain", node, selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
        yield
    finally:
        cluster.kubernetes("uncordon", node)


def retried(cluster: Cluster, one: Job) -> str:
    """Runs one more pod of the Job as it was, and returns what it said; it has to end with 0."""
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


def test_jobs_without_ids_never_meet(cluster: Cluster, chart: Chart, namespaces: MakeNamespace, job: MakeJob) -> None:
    """Two Jobs of two namespaces on one store, neither with an id: both are told to bring one, before anything is written."""
    elsewhere = namespaces("team")
    chart.install({"agents": {"namespaces": [elsewhere]}})
    jobs = [job(namespace, nodes=1, nnodes="1:2", change=without_id) for namespace in (chart.namespace, elsewhere)]
    for one in jobs:
        one.wait("it is told to bring an id", partial(one.said, "--rdzv-id"))
    assert "/lattice/" not in chart.etcdctl("get", "/lattice/", "--prefix", "--keys-only")


def without_id(job: Object) -> None:
    """Its agents are told no id; each of its pods fails once."""
    job["spec"]["backoffLimitPerIndex"] = 0
    forget_id(job["spec"]["template"]["spec"]["containers"][0])
