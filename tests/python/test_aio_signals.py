"""Signals of a program whose event loop has joined a run: they end the program, or its own handlers keep them."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest
from conftest import JoinNode
from harness.programs import Program
from harness.pythons import PYTHONS, name
from harness.service import Service
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv import aio

on_each_python = pytest.mark.parametrize("python", PYTHONS, ids=name)

# How often a program receives a signal at a random moment.
ENDS = 10

MAIN = """
    import asyncio, os, signal, threading
    from lattice_rdzv import aio

    async def main():
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        def own(name):
            print("own handler:", name, flush=True)
            called.set()
        {before}
        async with await aio.join({run_id!r}, nnodes={nnodes!r}, endpoint={endpoint!r}, node_name="node-1",
                local_address="127.0.0.1", lease_ttl=10, settle_time=0.1, last_call_timeout=0.5) as run:
            await run.next_world()
            {after}
            print("ready", flush=True)
            try:
                {then}
            finally:
                print("cleaned up", flush=True)
        print("left", flush=True)

    asyncio.run(main())
"""
WAIT = "await asyncio.Event().wait()"


def started(
    folder: Path,
    etcd: Service,
    run_id: str,
    then: str = WAIT,
    *,
    before: str = "",
    after: str = "",
    nnodes: str = "2",
    python: str = PYTHONS[0],
) -> Program:
    source = MAIN.format(run_id=run_id, nnodes=nnodes, endpoint=etcd.endpoint, then=then, before=before, after=after)
    return Program(folder, source, python=python)


def wait_ready(program: Program) -> None:
    wait_for("the program trains", lambda: "ready" in program.output, detail=lambda: program.output)


def leaving(peer: lattice_rdzv.Run) -> list[str]:
    """The nodes that a peer knows to leave."""
    change = peer.wait_change(timeout_seconds=20)
    assert change is not None
    assert change.kind == "leaving"
    return change.nodes


@on_each_python
def test_sigterm_ends_the_loop_and_the_node_leaves(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode, python: str
) -> None:
    program = started(tmp_path, etcd, run_id, python=python)
    peer = join("node-2")
    peer.next_world()
    wait_ready(program)
    program.process.send_signal(signal.SIGTERM)
    assert leaving(peer) == ["node-1"]
    assert program.wait() == 128 + signal.SIGTERM, program.output
    assert "cleaned up" in program.output
    assert "Traceback" not in program.output


def test_sigterm_is_announced_while_a_task_holds_the_loop(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode
) -> None:
    program = started(tmp_path, etcd, run_id, "threading.Event().wait(60)")
    peer = join("node-2")
    peer.next_world()
    wait_ready(program)
    program.process.send_signal(signal.SIGTERM)
    try:
        assert leaving(peer) == ["node-1"]
        assert "cleaned up" not in program.output
    finally:
        program.process.kill()
        program.process.wait()


def test_handler_of_the_loop_keeps_its_signal(tmp_path: Path, etcd: Service, run_id: str) -> None:
    then = "os.kill(os.getpid(), signal.SIGTERM); await called.wait(); print(run.state)"
    before = "loop.add_signal_handler(signal.SIGTERM, own, 'SIGTERM')"
    program = started(tmp_path, etcd, run_id, then, before=before, nnodes="1")
    assert program.wait() == 0, program.output
    assert program.output.count("own handler: SIGTERM") == 1
    assert "left" in program.output


@pytest.mark.parametrize("when", ["before", "after"])
def test_other_handlers_of_the_loop_work_and_sigterm_is_announced(
    tmp_path: Path, etcd: Service, run_id: str, join: JoinNode, when: str
) -> None:
    # The task does not return to the loop, so this node cannot leave. The peers only receive the announcement.
    then = "await called.wait(); print('blocked', flush=True); threading.Event().wait(60)"
    install = "loop.add_signal_handler(signal.SIGUSR1, own, 'SIGUSR1')"
    program = started(tmp_path, etcd, run_id, then, **{when: install})
    peer = join("node-2")
    peer.next_world()
    wait_ready(program)
    program.process.send_signal(signal.SIGUSR1)
    try:
        wait_for("the task blocks", lambda: "blocked" in program.output, detail=lambda: program.output)
        assert "own handler: SIGUSR1" in program.output
        assert not peer.changing
        program.process.send_signal(signal.SIGTERM)
        assert leaving(peer) == ["node-1"]
        assert "cleaned up" not in program.output
    finally:
        program.process.kill()
        program.process.wait()


def test_sigterm_ends_a_busy_loop_at_any_moment(tmp_path: Path, etcd: Service, run_id: str) -> None:
    then = """
                async def spin():
                    while True:
                        await asyncio.sleep(0)
                busy = [asyncio.create_task(spin()) for _ in range(50)]
                await asyncio.gather(*busy)
    """.strip()
    # One after the other, because each of them keeps a core busy.
    for number in range(ENDS):
        program = started(tmp_path, etcd, f"{run_id}-{number}", then, nnodes="1")
        try:
            wait_ready(program)
            program.process.send_signal(signal.SIGTERM)
            assert program.wait() == 128 + signal.SIGTERM, program.output
        finally:
            program.process.kill()
            program.process.wait()
        assert "cleaned up" in program.output
        assert "Traceback" not in program.output


def test_signals_are_unchanged_outside_the_main_thread_and_with_leave_on_signal_off(etcd: Service, run_id: str) -> None:
    async def disposition(number: int, *, leave_on_signal: bool) -> object:
        one = f"{run_id}-{number}"
        async with await aio.join(one, nnodes=1, endpoint=etcd.endpoint, leave_on_signal=leave_on_signal, lease_ttl=3):
            return signal.getsignal(signal.SIGTERM)

    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(disposition(1, leave_on_signal=True))))
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
    assert asyncio.run(disposition(2, leave_on_signal=False)) is signal.SIG_DFL
    assert asyncio.run(disposition(3, leave_on_signal=True)) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_status_reads_a_run_without_joining_it(join: JoinNode, etcd: Service, run_id: str) -> None:
    join("node-1", nnodes=1).next_world()
    awaited = asyncio.run(aio.status(run_id, endpoint=etcd.endpoint, timeout_seconds=30))
    assert awaited.rounds == lattice_rdzv.status(run_id, endpoint=etcd.endpoint, timeout_seconds=30).rounds
    assert [node.name for node in awaited.nodes] == ["node-1"]
