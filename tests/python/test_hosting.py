"""Without an etcd, the node with the address of the endpoint hosts the service for all. The tests also cover its loss."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.ports import free_port
from harness.programs import Program
from harness.together import Pending, together
from harness.wait import wait_for

import lattice_rdzv

JoinHosted = Callable[..., lattice_rdzv.Run]

SETTINGS: dict[str, object] = {
    "lease_ttl": 10,
    "settle_time": 0.1,
    "last_call_timeout": 1,
    "grow_delay": 0.1,
    "join_timeout": 60,
    "connect_timeout": 30,
    "close_timeout": 10,
}


@pytest.fixture
def endpoint() -> str:
    """Returns an address of this machine at which no server listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def join_hosted(endpoint: str, run_id: str) -> Iterator[JoinHosted]:
    """Joins nodes of this test's run without an etcd. They leave in reverse order, so that hosts leave last."""
    runs: list[lattice_rdzv.Run] = []

    def join(node_name: str, **settings: object) -> lattice_rdzv.Run:
        given = {"run_id": run_id, "nnodes": 2, "endpoint": endpoint, **SETTINGS, **settings}
        run = lattice_rdzv.join(node_name=node_name, **given)  # type: ignore[arg-type]
        runs.append(run)
        return run

    yield join
    for run in reversed(runs):
        run.leave(timeout_seconds=2)


def node_program(folder: Path, endpoint: str, run_id: str, name: str, then: str, nnodes: str = "2") -> Program:
    """Starts a node in a separate process, which can be killed."""
    return Program(
        folder,
        f"""
        import lattice_rdzv, time
        run = lattice_rdzv.join(
            {run_id!r}, node_name={name!r}, nnodes={nnodes!r}, endpoint={endpoint!r}, **{SETTINGS!r})
        world = run.next_world()
        print("rank", world.rank, "round", world.round, flush=True)
        {then}
        """,
        LATTICE_RDZV_LOG="info",
    )


def test_first_node_hosts_and_the_others_are_clients(join_hosted: JoinHosted) -> None:
    first, second = join_hosted("node-1"), join_hosted("node-2")
    worlds = together(first.next_world, second.next_world)
    assert sorted(world.rank for world in worlds) == [0, 1]
    worlds[0].store.set("key", b"value")
    assert worlds[1].store.wait("key") == b"value"


def test_nodes_that_start_together_on_one_machine_have_one_host(endpoint: str, run_id: str) -> None:
    all_have_it = threading.Barrier(4, timeout=20)

    def node(name: str) -> int:
        given = {"run_id": run_id, "nnodes": 4, "endpoint": endpoint, **SETTINGS}
        with lattice_rdzv.join(node_name=name, **given) as run:  # type: ignore[arg-type]
            size = run.next_world().size
            all_have_it.wait()
            assert run.close("succeeded")
            return size

    # The host waits until the other nodes have left.
    assert together(*[lambda name=f"node-{n}": node(name) for n in range(4)]) == [4, 4, 4, 4]


def test_node_that_must_not_host_reports_a_missing_server(endpoint: str, run_id: str) -> None:
    with pytest.raises(lattice_rdzv.UnreachableError, match=endpoint):
        lattice_rdzv.join(run_id, nnodes=1, endpoint=endpoint, is_host=False, connect_timeout=1)


def test_node_that_must_host_and_cannot_is_an_error_without_another_server(run_id: str) -> None:
    # An address for documentation, which no machine has and nothing forwards.
    endpoint = f"192.0.2.1:{free_port()}"
    with pytest.raises(lattice_rdzv.UnreachableError, match=r"is_host.*`192\.0\.2\.1` is no address of this machine"):
        lattice_rdzv.join(run_id, nnodes=1, endpoint=endpoint, is_host=True, connect_timeout=1)
    with pytest.raises(lattice_rdzv.SettingsError, match="one endpoint"):
        lattice_rdzv.join(run_id, nnodes=1, endpoint="127.0.0.1:1,127.0.0.1:2", is_host=True, connect_timeout=2)


def test_without_an_endpoint_or_a_local_etcd_the_node_hosts_the_server(run_id: str) -> None:
    with lattice_rdzv.join(run_id, nnodes=1, **SETTINGS) as run:  # type: ignore[arg-type]
        assert run.endpoint == "http://localhost:29400"
        assert run.next_world().size == 1


def test_service_of_another_run_is_refused(endpoint: str, join_hosted: JoinHosted) -> None:
    join_hosted("node-1")
    other: dict[str, object] = {"nnodes": 1, "endpoint": endpoint, **SETTINGS}
    with pytest.raises(lattice_rdzv.SettingsError, match=r"hosted by a node of another run .* another port") as caught:
        lattice_rdzv.join("another", **other)  # type: ignore[arg-type]
    assert endpoint in str(caught.value)
    assert "`another`" in str(caught.value)


def test_host_waits_at_the_end_until_the_others_have_left(join_hosted: JoinHosted) -> None:
    host, other = join_hosted("node-1"), join_hosted("node-2")
    worlds = together(host.next_world, other.next_world)
    closing = Pending(lambda: host.close("succeeded"))
    wait_for("the run is closed", lambda: other.closed is not None)
    # The host still serves, so a late node can use the store.
    worlds[1].store.set("late", b"1")
    assert other.leave()
    assert closing.result()


def test_survivors_detect_a_lost_host_and_continue_when_it_returns(
    tmp_path: Path, endpoint: str, run_id: str, join_hosted: JoinHosted
) -> None:
    host = node_program(tmp_path, endpoint, run_id, "node-1", "time.sleep(600)")
    wait_for("the host serves", lambda: _is_port_open(endpoint), detail=lambda: host.output)
    line = "this node hosts the rendezvous service"
    wait_for("the host logs it", lambda: line in host.output, detail=lambda: host.output)
    other = join_hosted("node-2")
    before = other.next_world()
    awaiting = Pending(lambda: before.store.multi_wait(["never"], until_change=True))
    host.process.kill()
    host.process.wait()

    # The value will never be written, because the store is lost with its host.
    assert awaiting.result() == [None]
    change = other.wait_change(timeout_seconds=60)
    assert change is not None
    assert change.kind == "lost"
    assert change.why.startswith("lost node-1, which hosts the service: ")
    waiting = Pending(lambda: other.next_world(timeout_seconds=60))
    again = node_program(tmp_path, endpoint, run_id, "node-1", "run.wait_change(timeout_seconds=60)")
    after = waiting.result(timeout_seconds=60)
    assert (after.size, after.rank) == (2, before.rank)
    assert after.round > before.round
    other.leave()
    assert again.wait() == 0, again.output


def test_waiting_for_a_lost_host_ends_after_host_timeout(
    tmp_path: Path, endpoint: str, run_id: str, join_hosted: JoinHosted
) -> None:
    host = node_program(tmp_path, endpoint, run_id, "node-1", "time.sleep(600)")
    wait_for("the host serves", lambda: _is_port_open(endpoint), detail=lambda: host.output)
    # A longer time than that of this test.
    other = join_hosted("node-2", host_timeout=2, close_timeout=600)
    other.next_world()
    host.process.kill()
    host.process.wait()
    with pytest.raises(lattice_rdzv.UnreachableError, match=r"node-1.*host_timeout.*lattice-rdzv serve"):
        other.next_world(timeout_seconds=60)
    # It also leaves.
    assert not other.close()


def _is_port_open(endpoint: str) -> bool:
    import socket

    host, port = endpoint.split(":")
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((host, int(port))) == 0
