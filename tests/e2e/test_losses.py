"""How soon, and by which evidence, the other agents detect that a pod is lost."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import pytest

from e2e.agents import Job
from e2e.chart import Chart
from e2e.cluster import Cluster
from e2e.conftest import MakeJob
from e2e.kubernetes import Failed, Object, holds
from e2e.wait import wait_for

pytestmark = pytest.mark.timeout(900, func_only=True)

# The time until the node controller marks a reconnected Kubernetes node as ready.
READY_SECONDS = 120.0
# A connection is refused while the pod has its address. The kubelet removes it within seconds, so a late observer leaves the
# decision to the lease.
LOST = r"lost {node}: (.*refused at|no renewal)"
# Allocates more than the memory limit of the example's container.
TOO_MUCH = "b'x' * (3 << 30)"


def test_each_loss_is_reported_with_its_evidence(
    cluster: Cluster, chart: Chart, job: MakeJob, say: Callable[[str], None]
) -> None:
    """A container runs out of memory, a pod is deleted without a grace period, and a Kubernetes node loses its network, one
    after the other. Prints which pods detected each loss, and when."""
    if cluster.no_faults:
        pytest.skip(cluster.no_faults)
    chart.install()
    one = job(chart.namespace, nodes=3, nnodes="2:3", conf="last_call_timeout=3", gloo=False, change=guarantee)
    one.world(3)

    with lost(one, "train-1", "out of memory", LOST.format(node="train-1"), say) as pod:
        exhaust_memory(cluster, one, pod)
    # The kubelet may notice the exit before the reason, which then stays "Error".
    assert end_of(cluster, one, pod)["exitCode"] == 128 + signal.SIGKILL

    # The kubelet may send SIGTERM first, and then the node announces that it leaves.
    with lost(one, "train-2", "deleted by force", LOST.format(node="train-2") + "|train-2 leaving", say) as pod:
        cluster.kubernetes("delete", "pod", pod, f"--namespace={one.namespace}", "--force", "--grace-period=0")

    store = cluster.kubernetes.list("pods", chart.namespace, selector="app.kubernetes.io/name=lattice-rdzv")
    places = {name: node_of(cluster, one, name) for name in one.running()}
    busy = {each["spec"]["nodeName"] for each in store}
    victim = next(name for name, place in sorted(places.items()) if place not in busy)
    assert set(places.values()) != {places[victim]}, "some pods are on other nodes and can report the loss"
    node = "-".join(victim.split("-")[:2])
    try:
        with lost(one, node, "machine without network", rf"lost {node}: no renewal", say, beside=places[victim]):
            cluster.cut_off(places[victim])
    finally:
        cluster.reconnect(places[victim])
        wait_for(
            f"{places[victim]} is ready again",
            lambda: holds("Ready", cluster.kubernetes.get("node", places[victim])),
            timeout_seconds=READY_SECONDS,
        )


@contextmanager
def lost(one: Job, node: str, how: str, pattern: str, say: Callable[[str], None], *, beside: str = "") -> Iterator[str]:
    """Yields the pod of a node, which the body ends, and waits until the other pods have logged the loss and formed a new
    world. If the Kubernetes node `beside` is disconnected, all of its pods are lost."""
    before, pod = one.workers(), one.pod_of(node)
    began = time.time()
    yield pod
    report = re.compile(pattern)

    def is_reported() -> bool:
        return any(report.search(text) for _, _, text in lines_of_others(one, pod, began))

    one.wait(f"another pod reports: {pattern}", is_reported)
    first: dict[str, tuple[float, str]] = {}
    for at, other, text in lines_of_others(one, pod, began):
        if report.search(text):
            first.setdefault(other, (at, text))
    say(f"{how}: {node}")
    for other, (at, text) in sorted(first.items(), key=lambda item: item[1]):
        say(f"  {at - began:6.2f} s  {other}: {text}")
    one.world(2 if beside else 3, besides=before)


def lines_of_others(one: Job, pod: str, since: float) -> list[tuple[float, str, str]]:
    """Returns time, pod and text of the lines of all other pods since a time, in order."""
    lines = [
        (seconds(at), follower.pod, text)
        for follower in one.logs.followers.values()
        if follower.pod != pod
        for at, text in follower.lines()
        if at[:1].isdigit()
    ]
    return sorted(line for line in lines if line[0] >= since)


def seconds(at: str) -> float:
    """Parses Kubernetes' time of a line, which has nanoseconds, into seconds since 1970."""
    whole, _, rest = at.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp() + float(f"0.{rest or 0}")


def guarantee(job: Object) -> None:
    """Sets the requests of the container to its limits, so that the kernel does not prefer its processes as victims."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    limits = {"cpu": "1", "memory": "2Gi"}
    container["resources"] = {"requests": limits, "limits": limits}


def exhaust_memory(cluster: Cluster, one: Job, pod: str) -> None:
    """Makes the kernel end the first process of the container, because the container exceeds its limit."""
    # With cgroups of version 1 the kernel ends one process. This makes it the first one, because the others have -997.
    script = f'echo 1000 > /proc/1/oom_score_adj && exec python -c "{TOO_MUCH}"'
    try:
        cluster.kubernetes("exec", pod, f"--namespace={one.namespace}", "--", "sh", "-c", script)
    except Failed:
        return
    raise AssertionError("the container has more memory than its limit")


def end_of(cluster: Cluster, one: Job, pod: str) -> Object:
    """Returns how the container of a pod has ended."""

    def find() -> Object | None:
        (status,) = cluster.kubernetes.get("pod", pod, one.namespace)["status"]["containerStatuses"]
        return dict(status["state"].get("terminated") or {})

    return wait_for(f"{pod} has ended", find)


def node_of(cluster: Cluster, one: Job, pod: str) -> str:
    """Returns the Kubernetes node of a pod."""
    return str(cluster.kubernetes.get("pod", pod, one.namespace)["spec"]["nodeName"])
