"""A `Run` that a program drops without leaving leaves by itself."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from pathlib import Path

from conftest import JoinNode
from harness.ports import free_port
from harness.programs import PATIENT_EXIT, Program
from harness.service import Service
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv import aio

# The lease outlives the test, so a node that disappears has left.
LONG_LEASE_SECONDS = 60


def join(etcd: Service, run_id: str, **settings: object) -> lattice_rdzv.Run:
    """Joins a run of one node, and keeps no other reference to it."""
    given: dict[str, object] = {"nnodes": 1, "node_name": "node-1", "lease_ttl": LONG_LEASE_SECONDS, "settle_time": 0.1}
    return lattice_rdzv.join(run_id, endpoint=etcd.endpoint, local_address="127.0.0.1", **given | settings)  # type: ignore[arg-type]


def test_dropped_run_leaves(etcd: Service, run_id: str) -> None:
    port = free_port()
    run = join(etcd, run_id, port=port)
    world = run.next_world()
    store = world.store
    store.set("key", b"value")
    assert len(etcd.nodes(run_id)) == 1
    del run
    wait_for("the node has left", lambda: etcd.nodes(run_id) == [])
    with socket.create_server(("", port)):
        pass
    assert world.size == 1


def test_dropped_run_of_an_event_loop_leaves(etcd: Service, run_id: str) -> None:
    async def scenario() -> None:
        run = await aio.join(
            run_id, nnodes=1, endpoint=etcd.endpoint, node_name="node-1", lease_ttl=LONG_LEASE_SECONDS, settle_time=0.1
        )
        await run.next_world()
        assert len(etcd.nodes(run_id)) == 1
        del run
        gc.collect()
        while etcd.nodes(run_id):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(scenario(), LONG_LEASE_SECONDS / 2))


def test_run_in_a_cycle_leaves_when_it_is_collected_in_another_thread(etcd: Service, run_id: str) -> None:
    run = join(etcd, run_id)
    cycle: list[object] = [run]
    cycle.append(cycle)
    # Otherwise this thread could collect it first.
    gc.disable()
    try:
        del run, cycle
        assert len(etcd.nodes(run_id)) == 1
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    finally:
        gc.enable()
    wait_for("the node has left", lambda: etcd.nodes(run_id) == [])


def test_run_that_waits_in_another_thread_stays(etcd: Service, run_id: str) -> None:
    run = join(etcd, run_id, nnodes=2)
    thread = threading.Thread(target=run.next_world, daemon=True)
    thread.start()
    del run
    gc.collect()
    other = join(etcd, run_id, nnodes=2, node_name="node-2")
    assert other.next_world().size == 2
    thread.join(20)
    wait_for("only the other node is left", lambda: len(etcd.nodes(run_id)) == 1)
    other.leave()


def test_cell_of_a_notebook_may_be_run_twice(etcd: Service, run_id: str) -> None:
    cell = f"""
run = lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, node_name="cell", lease_ttl={LONG_LEASE_SECONDS},
    settle_time=0.1, spare_timeout=20, join_timeout=20)
world = run.next_world()
"""
    variables: dict[str, object] = {"lattice_rdzv": lattice_rdzv}
    for _ in range(2):
        # The second time `run` is still bound to the first node while the second one joins.
        exec(cell, variables)
    variables.clear()
    wait_for("both nodes have left", lambda: etcd.nodes(run_id) == [])


def test_node_that_leaves_in_the_background_is_waited_for_at_exit(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode
) -> None:
    program = Program(
        tmp_path,
        f"""
    import lattice_rdzv
    {PATIENT_EXIT}
    run = lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, lease_ttl={LONG_LEASE_SECONDS})
    del run
    """,
        LATTICE_RDZV_LOG="info",
    )
    assert program.wait() == 0, program.output
    assert etcd.nodes(run_id) == []
    assert "dropped it without leaving" in program.output


def test_forked_child_that_drops_a_run_ends_nothing(tmp_path: Path, etcd: Service, run_id: str) -> None:
    program = Program(
        tmp_path,
        f"""
    import lattice_rdzv, os
    run = lattice_rdzv.join({run_id!r}, nnodes=1, endpoint={etcd.endpoint!r}, lease_ttl={LONG_LEASE_SECONDS})
    world = run.next_world()
    child = os.fork()
    if child == 0:
        del run, world
        raise SystemExit
    print("child ended", os.waitpid(child, 0)[1], run.state, flush=True)
    run.store.set("key", b"value")
    """,
    )
    assert program.wait() == 0, program.output
    assert "child ended 0 member" in program.output
