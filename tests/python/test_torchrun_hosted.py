"""Real torchrun processes without an etcd, each on a separate machine. The first one hosts the service for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import network
from harness.network import Machine
from harness.torchrun import Agent, Job, kill_node

pytestmark = [pytest.mark.timeout(500), pytest.mark.namespaces]

PORT = 29400
HOST_SECONDS = 6.0

Start = Callable[..., Agent]


@pytest.fixture(scope="module")
def three() -> Iterator[list[Machine]]:
    """Provides three machines."""
    with network.machines(3) as made:
        yield made


@pytest.fixture
def job(tmp_path: Path, three: list[Machine], run_id: str) -> Iterator[Job]:
    """Provides a job with the first machine's address as its endpoint, at which no server listens yet."""
    run = Job(tmp_path, f"{three[0].address}:{PORT}", run_id, nnodes="2:3")
    yield run
    run.end()


@pytest.fixture
def start(job: Job, three: list[Machine]) -> Start:
    """Starts an agent on the machine with this number."""

    def start_on(number: int, *, conf: dict[str, str] | None = None, linger_seconds: float = 0.0) -> Agent:
        machine = three[number]
        return job.start(
            f"node-{number}",
            conf={"host_timeout": f"{HOST_SECONDS:g}", **(conf or {})},
            environment={"GLOO_SOCKET_IFNAME": "eth0"},
            wrapper=machine.wrapper,
            address=machine.address,
            linger_seconds=linger_seconds,
        )

    return start_on


def test_it_forms_grows_loses_members_and_finishes(job: Job, start: Start) -> None:
    job.gloo = True
    host, second = start(0), start(1, linger_seconds=3)
    before = {name: line.group_rank for name, line in job.wait_trains("node-0", "node-1").items()}
    third = start(2)
    grown = {name: line.group_rank for name, line in job.wait_trains("node-0", "node-1", "node-2").items()}
    assert grown == {**before, "node-2": 2}

    at = third.terminate()
    job.wait_log(second, "the workers restart: node-2 leaving")
    job.wait_trains("node-0", "node-1", since=at)
    third.wait()
    again = start(2)
    job.wait_trains("node-0", "node-1", "node-2", since=time.monotonic())
    at = kill_node(job, again)
    job.wait_trains("node-0", "node-1", since=at)
    job.wait_log(second, "lost node-2")

    job.finish()
    # The host's workers end first, but the host serves until the other agents have left.
    assert host.wait() == second.wait() == 0, job.describe()


def test_host_that_is_killed_ends_the_others_with_the_reason(job: Job, start: Start) -> None:
    agents = [start(number) for number in range(3)]
    job.wait_trains("node-0", "node-1", "node-2")
    kill_node(job, agents[0])
    for agent in agents[1:]:
        # At once, and not when the lease may have expired.
        job.wait_log(agent, "lost node-0, which hosts the service: its connection ended, then", timeout_seconds=20)
    for agent in agents[1:]:
        assert agent.wait() != 0
        assert "RendezvousConnectionError" in agent.log
        assert f"has not returned within {HOST_SECONDS:g} s" in agent.log


def test_terminated_host_announces_that_it_leaves(job: Job, start: Start) -> None:
    agents = [start(number) for number in range(3)]
    job.wait_trains("node-0", "node-1", "node-2")
    agents[0].terminate()
    for agent in agents[1:]:
        job.wait_log(agent, "the workers restart: node-0 leaving")
        assert agent.wait() != 0
        assert "RendezvousConnectionError" in agent.log


def test_host_that_returns_in_time_gets_its_rank_again(job: Job, start: Start) -> None:
    agents = [start(number, conf={"host_timeout": "60"}) for number in range(3)]
    before = {name: line.group_rank for name, line in job.wait_trains("node-0", "node-1", "node-2").items()}
    at = kill_node(job, agents[0])
    again = start(0, conf={"host_timeout": "60"})
    after = {name: line.group_rank for name, line in job.wait_trains("node-0", "node-1", "node-2", since=at).items()}
    assert after == before
    job.finish()
    assert again.wait() == agents[1].wait() == agents[2].wait() == 0, job.describe()


def test_node_that_is_configured_as_a_second_host_joins_as_a_client(job: Job, start: Start) -> None:
    host = start(0)
    second = start(1, conf={"is_host": "1"})
    assert {line.group_world for line in job.wait_trains("node-0", "node-1").values()} == {2}
    assert "this node hosts the rendezvous service" not in second.log
    assert "this node hosts no server, and uses that service" in second.log
    job.finish()
    assert host.wait() == second.wait() == 0, job.describe()
