"""Fixtures: one cluster per session and one namespace per scenario. A failed scenario prints events and logs."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from e2e.agents import SCENARIO, AgentPod, Job, Logs, idle_pod, torch_volume, torchrun_job, training_config
from e2e.chart import Chart
from e2e.cluster import NODES, OF_THIS_SESSION, Cluster, NoCluster, choose
from e2e.kubernetes import Failed, Kubernetes, Object, is_leaving, takes_pods
from e2e.report import gather
from e2e.wait import wait_for

DEFAULT_ETCD = "v3.5.5"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, say: Callable[[str], None]) -> Iterator[Cluster]:
    """Provides the cluster, with the agents' image on its nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    try:
        with choose(folder) as (chosen, others):
            say("; ".join([f"cluster: {chosen.describe()}", *(f"no other one: {reason}" for reason in others)]))
            wait_for(f"{NODES} nodes accept pods", lambda: has_room(chosen.kubernetes), timeout_seconds=120)
            chosen.provide()
            chosen.provide_etcd(DEFAULT_ETCD)
            yield chosen
            _delete_leftovers(chosen.kubernetes)
    except NoCluster as reason:
        skip(f"no cluster: {reason}")


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once, although pytest captures the output of the session."""
    manager = request.config.pluginmanager.getplugin("capturemanager")

    def print_now(line: str) -> None:
        with manager.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    return print_now


def has_room(kubernetes: Kubernetes) -> bool:
    """Returns whether enough nodes accept pods. A node that has just been added may not accept any yet."""
    return sum(map(takes_pods, kubernetes.list("nodes", ""))) >= NODES


def skip(why: str) -> None:
    """Skips a scenario. With `LATTICE_E2E=required`, it fails instead; see `pytest_runtest_makereport`."""
    pytest.skip(why)


def _delete_leftovers(kubernetes: Kubernetes) -> None:
    """Deletes the volumes of the scenarios, and checks that the scenarios have deleted their namespaces."""
    selector = ",".join(f"{key}={value}" for key, value in OF_THIS_SESSION.items())
    kept = [one for one in kubernetes.list("namespaces", "", selector=selector) if not is_leaving(one)]
    for kind, seconds in (("namespaces", 300), ("persistentvolumes", 60)):
        limit = f"--timeout={seconds}s"
        kubernetes("delete", kind, f"--selector={selector}", limit, timeout_seconds=seconds + 30)
        left = kubernetes.list(kind, "", selector=selector)
        assert left == [], f"left behind: {[one['metadata']['name'] for one in left]}"
    assert kept == [], f"no scenario deleted {[one['metadata']['name'] for one in kept]}"


MakeNamespace = Callable[..., str]


@pytest.fixture
def namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    """Creates namespaces for a scenario, with the Pod Security Standard `restricted`, and deletes them after it."""
    yield from _namespaces(cluster, request)


@pytest.fixture(scope="module")
def module_namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    """Creates namespaces that all scenarios of a module share."""
    yield from _namespaces(cluster, request)


def _namespaces(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    made: list[str] = []

    def make(purpose: str = "rdzv", *, enforce: str = "restricted", exactly: str = "") -> str:
        name = exactly or f"{purpose}-{uuid.uuid4().hex[:6]}"
        labels = {**OF_THIS_SESSION, SCENARIO: re.sub("[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")}
        labels["pod-security.kubernetes.io/enforce"] = enforce
        # Not `apply`, because an existing namespace of this name must be neither changed nor deleted.
        cluster.kubernetes.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
        # Pods can be created only after this.
        cluster.kubernetes.wait("serviceaccount/default", "create", name, timeout_seconds=60)
        made.append(name)
        request.session.stash[_NAMESPACES].append(name)
        return name

    yield make
    for name in made:
        # Jobs first: since 1.33, the deletion of a namespace ends its pods before its Jobs. A pod that failed in an index
        # with a separate limit is kept until its successor is created, which the deletion of the namespace prevents.
        cluster.kubernetes("delete", "jobs", "--all", f"--namespace={name}", "--timeout=120s")
        # The next scenario may need a namespace of this name, so it must be gone.
        cluster.kubernetes("delete", "namespace", name, f"--wait={'false' if '-' in name else 'true'}")
        # The claims in the next namespace of this name would find these volumes bound.
        cluster.kubernetes("delete", "persistentvolumes", f"--selector={SCENARIO}={name}", "--wait=false")
        request.session.stash[_NAMESPACES].remove(name)


_NAMESPACES = pytest.StashKey[list[str]]()
_LOGS = pytest.StashKey[list[Logs]]()


# The scenarios of these modules fail if a lease ends, or if a lost Kubernetes node returns with another address, so they run first:
# .ci/run begins with its lighter tests, and makes its second cluster later.
FIRST = ("test_members", "test_versions", "test_store_lost", "test_losses")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in FIRST)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[_NAMESPACES] = []
    session.stash[_LOGS] = []


@pytest.fixture
def chart(cluster: Cluster, namespaces: MakeNamespace) -> Chart:
    """Provides a chart that is not installed yet, in a new namespace."""
    return Chart(cluster.kubernetes, namespaces())


MakePod = Callable[..., AgentPod]


@pytest.fixture
def agent_pod(cluster: Cluster) -> MakePod:
    """Creates a pod of the agents' image that waits for commands. Its namespace is deleted after the scenario."""

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
    """Creates Jobs of torchrun agents."""
    yield from _jobs(cluster, request, tmp_path)


@pytest.fixture(scope="module")
def module_job(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeJob]:
    """Creates Jobs that all scenarios of a module share."""
    yield from _jobs(cluster, request, tmp_path_factory.mktemp("logs"))


def _jobs(cluster: Cluster, request: pytest.FixtureRequest, folder: Path) -> Iterator[MakeJob]:
    logs: list[Logs] = []

    def make(
        namespace: str,
        *,
        nodes: int,
        nnodes: str,
        conf: str = "",
        gloo: bool = True,
        change: Callable[[Object], None] = lambda job: None,
    ) -> Job:
        logs.append(Logs(cluster.kubernetes, namespace, folder))
        request.session.stash[_LOGS].append(logs[-1])
        volume = torch_volume(cluster, namespace)
        cluster.kubernetes.apply(training_config(namespace), *volume)
        manifest = torchrun_job(cluster, namespace, nodes=nodes, nnodes=nnodes, conf=conf, gloo=gloo)
        change(manifest)
        return Job(cluster.kubernetes, logs[-1], manifest)

    yield make
    for one in logs:
        one.close()
        request.session.stash[_LOGS].remove(one)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds Kubernetes' events and the pods' log lines to the report of a failed scenario."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("LATTICE_E2E") == "required":
        report.outcome, report.longrepr = (
            "failed",
            f"LATTICE_E2E is `required`, but this was skipped: {report.longrepr}",
        )
    if report.failed and (cluster := _cluster_of(item)) is not None:
        namespaces, logs = item.session.stash[_NAMESPACES], item.session.stash[_LOGS]
        try:
            text = gather(cluster.kubernetes, namespaces, logs)
        except (Failed, subprocess.TimeoutExpired) as error:
            # The report must show the failure of the scenario, even if the cluster no longer responds.
            text = f"there is nothing to show: {error}"
        report.sections.append(("Kubernetes' events and the pods' log lines", text))
    return report  # type: ignore[return-value]


def _cluster_of(item: pytest.Item) -> Cluster | None:
    found = getattr(item, "funcargs", {}).get("cluster")
    return found if isinstance(found, Cluster) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the scenarios that ran, and those that were skipped."""
    terminalreporter.section("scenarios")
    for outcome in ("passed", "skipped"):
        reports = terminalreporter.stats.get(outcome, [])
        for name in sorted(report.nodeid.partition("::")[2] for report in reports):
            terminalreporter.line(name if outcome == "passed" else f"{name}: {outcome}")
