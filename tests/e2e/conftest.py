"""One cluster a session, a namespace a story, and what a failing story leaves to read."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from e2e.agents import STORY, AgentPod, Job, Logs, idle_pod, torch_volume, torchrun_job, training_config
from e2e.chart import Chart
from e2e.cluster import NODES, OF_THIS_SESSION, Cluster, NoCluster, choose
from e2e.kubernetes import Failed, Kubernetes, Object, is_leaving, takes_pods
from e2e.report import gather

DEFAULT_ETCD = "v3.5.5"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, say: Callable[[str], None]) -> Iterator[Cluster]:
    """The cluster, with the agents' image on its nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    try:
        with choose(folder) as (chosen, others):
            say("; ".join([f"cluster: {chosen.describe()}", *(f"none before it: {lack}" for lack in others)]))
            wait_for(
                f"{NODES} nodes take pods", lambda: has_room(chosen.kubernetes), timeout_seconds=120, every_seconds=1
            )
            chosen.provide()
            chosen.provide_etcd(DEFAULT_ETCD)
            yield chosen
            _leave_nothing(chosen.kubernetes)
    except NoCluster as reason:
        lack(f"no cluster: {reason}")


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line that is seen although the session's output is kept back."""
    manager = request.config.pluginmanager.getplugin("capturemanager")

    def print_now(line: str) -> None:
        with manager.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    return print_now


def has_room(kubernetes: Kubernetes) -> bool:
    """Whether there are as many nodes as stories need; one that has just come may not take pods yet."""
    return sum(map(takes_pods, kubernetes.list("nodes", ""))) >= NODES


def lack(why: str) -> None:
    """Skips a story, which fails where nothing may be left out."""
    pytest.skip(why)


def _leave_nothing(kubernetes: Kubernetes) -> None:
    """What the stories made is gone: their namespaces, which they have deleted, and the volumes outside of them."""
    selector = ",".join(f"{key}={value}" for key, value in OF_THIS_SESSION.items())
    kept = [one for one in kubernetes.list("namespaces", "", selector=selector) if not is_leaving(one)]
    for kind, seconds in (("namespaces", 300), ("persistentvolumes", 60)):
        limit = f"--timeout={seconds}s"
        kubernetes("delete", kind, f"--selector={selector}", limit, timeout_seconds=seconds + 30)
        left = kubernetes.list(kind, "", selector=selector)
        assert left == [], f"left behind: {[one['metadata']['name'] for one in left]}"
    assert kept == [], f"no story deleted {[one['metadata']['name'] for one in kept]}"


MakeNamespace = Callable[..., str]


@pytest.fixture
def namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    """Makes namespaces for a story, restricted as a careful owner would, and deletes them after it."""
    yield from _namespaces(cluster, request)


@pytest.fixture(scope="module")
def module_namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    """The same for what all stories of a module share."""
    yield from _namespaces(cluster, request)


def _namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    made: list[str] = []

    def make(purpose: str = "rdzv", *, enforce: str = "restricted", exactly: str = "") -> str:
        name = exactly or f"{purpose}-{uuid.uuid4().hex[:6]}"
        labels = {**OF_THIS_SESSION, STORY: re.sub("[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")}
        labels["pod-security.kubernetes.io/enforce"] = enforce
        # Not `apply`: one that is there already is somebody's, and is neither changed nor deleted.
        cluster.kubernetes.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
        # Pods can be made from then on.
        cluster.kubernetes.wait("serviceaccount/default", "create", name, timeout_seconds=60)
        made.append(name)
        request.session.stash[_NAMESPACES].append(name)
        return name

    yield make
    for name in made:
        # Jobs first: from 1.33 on a namespace ends its pods before its Jobs, and a pod that failed in an index with a
        # limit of its own is kept until its successor is made, which may not be made any more.
        cluster.kubernetes("delete", "jobs", "--all", f"--namespace={name}", "--timeout=120s")
        # One of a name that the next story could want has to be gone.
        cluster.kubernetes("delete", "namespace", name, f"--wait={'false' if '-' in name else 'true'}")
        # What the claims of the next one of that name would find bound.
        cluster.kubernetes("delete", "persistentvolumes", f"--selector={STORY}={name}", "--wait=false")
        request.session.stash[_NAMESPACES].remove(name)


_NAMESPACES = pytest.StashKey[list[str]]()
_LOGS = pytest.StashKey[list[Logs]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[_NAMESPACES] = []
    session.stash[_LOGS] = []


@pytest.fixture
def chart(cluster: Cluster, namespaces: MakeNamespace) -> Chart:
    """A chart that is not installed yet, in a namespace of its own."""
    return Chart(cluster.kubernetes, namespaces())


MakePod = Callable[..., AgentPod]


@pytest.fixture
def agent_pod(cluster: Cluster) -> MakePod:
    """Makes a pod of the agents' image that waits for commands; its namespace is deleted after the story."""

    def make(
        namespace: str,
        name: str = "agent",
        *,
        with_config: bool = True,
        mounts: Sequence[Object] = (),
        variables: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> AgentPod:
        manifest = idle_pod(cluster.agent_image, name, namespace)
        manifest["spec"].update(spec)
        (one,) = manifest["spec"]["containers"]
        one["volumeMounts"] += mounts
        one["env"] += [{"name": variable, "value": value} for variable, value in (variables or {}).items()]
        if not with_config:
            del one["envFrom"]
        return AgentPod(cluster.kubernetes, manifest)

    return make


MakeJob = Callable[..., Job]


@pytest.fixture
def job(cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeJob]:
    """Makes Jobs of torchrun agents."""
    yield from _jobs(cluster, request, tmp_path)


@pytest.fixture(scope="module")
def module_job(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeJob]:
    """The same for what all stories of a module share."""
    yield from _jobs(cluster, request, tmp_path_factory.mktemp("logs"))


def _jobs(cluster: Cluster, request: pytest.FixtureRequest, folder: Path) -> Iterator[MakeJob]:
    logs: list[Logs] = []

    def make(
        namespace: str, *, nodes: int, nnodes: str, conf: str = "", change: Callable[[Object], None] = lambda job: None
    ) -> Job:
        logs.append(Logs(cluster.kubernetes, namespace, folder))
        request.session.stash[_LOGS].append(logs[-1])
        lent = torch_volume(cluster, namespace)
        cluster.kubernetes.apply(training_config(namespace), *lent)
        manifest = torchrun_job(cluster, namespace, nodes=nodes, nnodes=nnodes, conf=conf)
        change(manifest)
        return Job(cluster.kubernetes, logs[-1], manifest)

    yield make
    for one in logs:
        one.close()
        request.session.stash[_LOGS].remove(one)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A story that fails shows what Kubernetes and the pods said meanwhile."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("LATTICE_E2E") == "required":
        report.outcome, report.longrepr = (
            "failed",
            f"LATTICE_E2E is `required`, and this was skipped: {report.longrepr}",
        )
    if report.failed and (cluster := _cluster_of(item)) is not None:
        namespaces, logs = item.session.stash[_NAMESPACES], item.session.stash[_LOGS]
        try:
            text = gather(cluster.kubernetes, namespaces, logs)
        except (Failed, subprocess.TimeoutExpired) as lacking:
            # What failed is the story; the cluster may not even answer any more.
            text = f"there is nothing to show: {lacking}"
        report.sections.append(("Kubernetes' events and the pods' log lines", text))
    return report  # type: ignore[return-value]


def _cluster_of(item: pytest.Item) -> Cluster | None:
    found = getattr(item, "funcargs", {}).get("cluster")
    return found if isinstance(found, Cluster) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which stories ran, and which did not."""
    terminalreporter.section("stories")
    for outcome in ("passed", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        for name in sorted(report.nodeid.partition("::")[2] for report in reports):
            terminalreporter.line(name if outcome == "passed" else f"{name}: {outcome}")
