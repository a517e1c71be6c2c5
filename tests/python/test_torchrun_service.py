"""Real torchrun processes whose service is lost, or requires credentials."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from harness.certificates import Certificates
from harness.service import Service
from harness.torchrun import LEASE_SECONDS, MakeJob, ranks, starts, two_train_to_the_end
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(500)


@pytest.mark.parametrize("fault", ["killed", "paused", "wiped"])
def test_service_loses_its_data_and_no_worker_restarts(job: MakeJob, own_service: Service, fault: str) -> None:
    run = job(nnodes="2:3", endpoint=own_service.endpoint)
    run.start("node-1")
    run.start("node-2")
    before = ranks(run.wait_trains("node-1", "node-2"))

    if fault == "killed":
        # An etcd restarts with its data, the embedded server without any.
        own_service.kill()
        _let_pass(30)
        own_service.start()
    elif fault == "paused":
        own_service.pause()
        _let_pass(3 * LEASE_SECONDS)
        own_service.resume()
    else:
        own_service.wipe()
    wait_for(
        "both nodes are registered",
        lambda: len(own_service.nodes(run.run_id)) == 2,
        timeout_seconds=60,
        detail=run.describe,
    )
    assert starts(run) == {"node-1": 1, "node-2": 1}

    run.start("node-3")
    after = ranks(run.wait_trains("node-1", "node-2", "node-3"))
    assert after == {**before, "node-3": 2}
    assert starts(run) == {"node-1": 2, "node-2": 2, "node-3": 1}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()


def _let_pass(seconds: float) -> None:
    # No condition can be awaited here, because a lease must expire.
    deadline = time.monotonic() + seconds
    wait_for(f"{seconds:g} s have passed", lambda: time.monotonic() > deadline, timeout_seconds=seconds + 5)


def test_job_ends_although_the_service_is_lost_permanently(job: MakeJob, own_service: Service) -> None:
    run = job(nnodes="1", endpoint=own_service.endpoint, environment={"LOGLEVEL": "INFO"})
    agent = run.start("node-1", conf={"close_timeout": "3"})
    run.wait_trains("node-1")
    own_service.kill()
    run.finish()
    # torch waits at its exit barrier for up to 300 s and ignores the error. A signal ends the wait earlier.
    run.wait_log(agent, "Waiting 300 seconds for other agents to finish")
    agent.terminate()
    agent.wait(40)


def test_mutual_tls(job: MakeJob, mtls_service: Service, certificates: Certificates) -> None:
    files = {
        "LATTICE_RDZV_CACERT": str(certificates.authority),
        "LATTICE_RDZV_CERT": str(certificates.client),
        "LATTICE_RDZV_KEY": str(certificates.client_key),
    }
    run = job(nnodes="2", endpoint=mtls_service.endpoint, environment=files)
    two_train_to_the_end(run)


def test_password(job: MakeJob, own_service: Service, tmp_path: Path) -> None:
    own_service.need_password("agent", "s3cret")
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    environment = {"LATTICE_RDZV_USER": "agent", "LATTICE_RDZV_PASSWORD_FILE": str(file)}
    run = job(nnodes="2", endpoint=own_service.endpoint, environment=environment)
    two_train_to_the_end(run)
    assert not any("s3cret" in agent.log for agent in run.agents)
