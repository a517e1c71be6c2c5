"""The API for asyncio: each call is a task of the core, which its own cancellation ends and no other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from harness.etcd import Etcd
from harness.programs import PATIENT_EXIT, Program
from harness.pythons import PYTHONS, name
from harness.service import Service
from harness.wait import wait_for

import lattice_rdzv
from lattice_rdzv import _core, aio

WAITS = 1000


async def joined(service: Service, run_id: str, **settings: Any) -> aio.Run:
    given = {"nnodes": 1, "node_name": "node-1", "local_address": "127.0.0.1", "settle_time": 0.1}
    return await aio.join(run_id, endpoint=service.endpoint, **{**given, **settings})


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [
        (lattice_rdzv.Run, aio.Run),
        (lattice_rdzv.World, aio.World),
        (lattice_rdzv.Store, aio.Store),
        (lattice_rdzv.Server, aio.Server),
        (lattice_rdzv, aio),
    ],
)
def test_aio_has_what_the_synchronous_api_has(blocking: Any, awaited: Any) -> None:
    if inspect.isclass(blocking):
        names = {name for name in dir(blocking) if not name.startswith("_")}
        assert names == {name for name in dir(awaited) if not name.startswith("_")}
    else:
        names = {name for name in lattice_rdzv.__all__ if inspect.isfunction(getattr(lattice_rdzv, name))}
    for member in names:
        one, other = getattr(blocking, member), getattr(awaited, member)
        assert one.__doc__
        assert other.__doc__
        if one is other:
            assert not inspect.isclass(one), "a method that waits for nothing"
        elif callable(one):
            assert inspect.iscoroutinefunction(other), member
            parameters, others = inspect.signature(one).parameters, inspect.signature(other).parameters
            assert list(parameters.values()) == list(others.values()), member
        else:
            assert type(one) is type(other), member


def test_two_nodes_form_a_world_and_share_a_store(etcd: Service, run_id: str) -> None:
    async def node(name: str) -> tuple[int, int, int, list[str], bytes | None]:
        async with await joined(etcd, run_id, nnodes=2, node_name=name) as run:
            world = await run.next_world()
            total = await world.store.add("sum", world.rank + 1)
            await world.store.set(f"seen/{world.rank}", b"1")
            await world.store.multi_wait(["seen/0", "seen/1"])
            if world.rank == 0:
                await run.store.set("checkpoint", b"7")
            members = [member.name for member in await world.members()]
            return world.rank, world.size, total, members, await run.store.wait("checkpoint")

    async def both() -> list[tuple[int, int, int, list[str], bytes | None]]:
        return list(await asyncio.gather(node("node-1"), node("node-2")))

    answers = sorted(asyncio.run(both()))
    assert [(rank, size) for rank, size, *_ in answers] == [(0, 2), (1, 2)]
    assert max(total for _, _, total, *_ in answers) == 3
    assert all(sorted(members) == ["node-1", "node-2"] for *_, members, _ in answers)
    assert {checkpoint for *_, checkpoint in answers} == {b"7"}


def test_waits_take_no_threads(etcd: Service, run_id: str) -> None:
    async def scenario() -> tuple[int, int]:
        async with await joined(etcd, run_id) as run:
            store = (await run.next_world()).store
            await store.set("there", b"")
            before = threads()
            waiting = [asyncio.create_task(store.wait(f"key-{number}")) for number in range(WAITS)]
            await store.wait("there")
            during = threads()
            await store.multi_set([(f"key-{number}", str(number).encode()) for number in range(WAITS)])
            assert [int(value or b"") for value in await asyncio.gather(*waiting)] == list(range(WAITS))
            return before, during

    before, during = asyncio.run(scenario())
    # Other threads of this process may start meanwhile.
    assert during < before + 10


def test_cancelled_wait_ends_no_other(etcd: Service, run_id: str) -> None:
    async def scenario() -> bytes | None:
        async with await joined(etcd, run_id) as run:
            store = (await run.next_world()).store
            ended = [asyncio.create_task(store.wait("key")) for _ in range(3)]
            staying = asyncio.create_task(store.wait("key"))
            await store.set("other", b"")
            for task in ended:
                task.cancel()
            await asyncio.wait(ended)
            assert all(task.cancelled() for task in ended)
            assert not staying.done()
            await store.set("key", b"value")
            return await staying

    assert asyncio.run(scenario()) == b"value"


def test_only_one_task_may_wait_for_a_world_and_a_cancelled_one_does_not_count(etcd: Service, run_id: str) -> None:
    async def scenario() -> None:
        async with await joined(etcd, run_id, nnodes=2) as run:
            for _ in range(100):
                waiting = asyncio.create_task(run.next_world())
                await asyncio.sleep(0)
                with pytest.raises(lattice_rdzv.RendezvousError, match="another thread or task"):
                    await run.next_world()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    asyncio.run(scenario())


def test_world_that_forms_while_its_wait_is_cancelled_is_returned_next(etcd: Service, run_id: str) -> None:
    async def scenario() -> tuple[int, int, bool]:
        async with await joined(etcd, run_id) as run, await joined(etcd, f"{run_id}-other") as other:
            cancelled = asyncio.create_task(run.next_world())
            await asyncio.sleep(0)
            # This wait blocks the event loop, so the world forms, but the task does not receive it yet.
            wait_for("the node is in a world", lambda: run.state == "member")
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await other.next_world()
            world = await run.next_world(timeout_seconds=20)
            return world.round, world.size, run.changing

    assert asyncio.run(scenario()) == (1, 1, False)


def test_no_time_limit_is_none(etcd: Service, run_id: str) -> None:
    async def scenario() -> bytes | None:
        async with await joined(etcd, run_id) as run:
            store = (await run.next_world()).store
            waiting = asyncio.create_task(store.wait("key", timeout_seconds=None))
            await store.set("key", b"value", timeout_seconds=None)
            return await waiting

    assert asyncio.run(scenario()) == b"value"


def test_cancelled_writes_are_applied_and_hold_up_neither_other_calls_nor_the_end(own_etcd: Etcd, run_id: str) -> None:
    async def scenario() -> list[bytes | None]:
        async with await joined(own_etcd, run_id) as run:
            store = (await run.next_world()).store
            own_etcd.pause()
            try:
                writes = [asyncio.create_task(store.set(f"key-{number}", b"value")) for number in range(40)]
                # Each has begun.
                await asyncio.sleep(0)
                for write in writes:
                    write.cancel()
                await asyncio.wait(writes)
                assert all(write.cancelled() for write in writes)
            finally:
                own_etcd.resume()
            return await store.multi_wait([f"key-{number}" for number in range(40)], timeout_seconds=60)

    assert asyncio.run(scenario()) == [b"value"] * 40


def test_exception_leaves_soon_if_the_service_does_not_respond(own_etcd: Etcd, run_id: str) -> None:
    async def program() -> None:
        # Without the exception, leaving would take longer than the time limit of the test.
        async with await joined(own_etcd, run_id, close_timeout=600) as run:
            await run.next_world()
            own_etcd.pause()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(program())
    own_etcd.resume()


def test_leaving_is_bounded_while_writes_continue(own_etcd: Etcd, run_id: str) -> None:
    async def scenario() -> bool:
        run = await joined(own_etcd, run_id, close_timeout=1)
        store = (await run.next_world()).store
        own_etcd.pause()
        write = asyncio.create_task(store.set("key", b"value"))
        await asyncio.sleep(0)
        write.cancel()
        return await run.leave()

    try:
        assert not asyncio.run(scenario())
    finally:
        own_etcd.resume()


def test_cancelled_join_leaves_no_member_behind(etcd: Service, run_id: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lattice_rdzv")
    # The core follows the level of the logger a few seconds late.
    _core.log_level(logging.INFO)

    async def scenario() -> None:
        joining = asyncio.create_task(joined(etcd, run_id, lease_ttl=300))
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining

    asyncio.run(scenario())
    wait_for("the node has joined and leaves", lambda: "the program dropped it without leaving" in caplog.text)
    wait_for("the node has left", lambda: etcd.nodes(run_id) == [])


def test_runs_store_waits_until_the_run_has_begun(etcd: Service, run_id: str) -> None:
    async def scenario() -> bytes | None:
        # While another node is coordinator and decides nothing, the run does not begin.
        coordinator = f"/lattice/rdzv/default/{run_id}/ctl/coordinator"
        record = {"version": 1, "node": "00000000000000aa", "name": "idle", "nonce": "aa", "min": 2, "max": 2}
        etcd.put(coordinator, json.dumps(record).encode())
        async with await joined(etcd, run_id, nnodes=2) as first:
            store = first.store
            with pytest.raises(lattice_rdzv.StoreTimeoutError, match="has not begun"):
                await store.wait("key", timeout_seconds=0.1)
            waiting = asyncio.create_task(store.wait("key"))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(first.next_world(), 0.3)
            assert not waiting.done()
            etcd.delete(coordinator)
            async with await joined(etcd, run_id, nnodes=2, node_name="node-2") as second:
                await asyncio.gather(first.next_world(), second.next_world())
                await second.store.set("key", b"value")
                return await waiting

    assert asyncio.run(scenario()) == b"value"


def test_iteration_ends_with_success(etcd: Service, run_id: str) -> None:
    async def scenario() -> list[int]:
        sizes = []
        async with await joined(etcd, run_id) as run:
            async for world in run:
                sizes.append(world.size)
                await run.close("succeeded")
        return sizes

    assert asyncio.run(scenario()) == [1]


def test_iteration_raises_if_the_run_failed(etcd: Service, run_id: str) -> None:
    sizes = []

    async def scenario() -> None:
        async with await joined(etcd, run_id) as run:
            async for world in run:
                sizes.append(world.size)
                await run.close("failed", why="loss is NaN")

    with pytest.raises(lattice_rdzv.ClosedError, match="loss is NaN"):
        asyncio.run(scenario())
    assert sizes == [1]


def test_run_outlives_its_event_loop(etcd: Service, run_id: str) -> None:
    async def begin() -> aio.Run:
        run = await joined(etcd, run_id)
        await run.next_world()
        # Cancelled when this loop ends.
        asyncio.get_running_loop().create_task(run.wait_change())
        await asyncio.sleep(0)
        return run

    async def end(run: aio.Run) -> bool:
        await run.store.set("key", b"value")
        return await run.leave()

    run = asyncio.run(begin())
    gc.collect()
    assert asyncio.run(end(run))


def test_loop_that_is_closed_with_pending_calls_leaves_no_descriptor(etcd: Service, run_id: str) -> None:
    async def begin() -> aio.Run:
        run = await joined(etcd, run_id)
        await run.next_world()
        return run

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    run = asyncio.run(begin())
    gc.collect()
    before = descriptors()
    for _ in range(10):
        loop = asyncio.new_event_loop()
        with contextlib.suppress(asyncio.TimeoutError):
            loop.run_until_complete(asyncio.wait_for(run.wait_change(), 0.01))
        pending = loop.create_task(run.wait_change())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        # The task will never be finished, because its loop is closed.
        pending._log_destroy_pending = False  # type: ignore[attr-defined]
        del pending, loop
    gc.collect()
    wait_for("all descriptors are closed", lambda: descriptors() <= before)
    assert asyncio.run(run.leave())


EXITS = {
    "asyncio.run": "asyncio.run(scenario(0))",
    "a loop that is not closed": """
loop = asyncio.new_event_loop()
task = loop.create_task(scenario(60))
loop.run_until_complete(started.wait())
""",
    "a loop of a daemon thread": """
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_until_complete, args=(scenario(60),), daemon=True).start()
assert ready.wait(60)
""",
}

EXIT = """
import asyncio, threading
from lattice_rdzv import _core, aio
started, ready = asyncio.Event(), threading.Event()
async def scenario(seconds):
    run = await aio.join({run_id!r}, nnodes=1, endpoint={endpoint!r}, node_name="node-1", local_address="127.0.0.1")
    world = await run.next_world()
    tasks = [asyncio.create_task(run.wait_change())]
    tasks += [asyncio.create_task(world.store.wait(f"never-{{number}}")) for number in range(20)]
    tasks += [asyncio.create_task(world.store.set(f"key-{{number}}", b"value")) for number in range(20)]
    tasks += [asyncio.create_task(world.store.queue_pop("never"))]
    await asyncio.sleep(0)
    started.set()
    ready.set()
    await asyncio.sleep(seconds)
"""


@pytest.mark.parametrize("python", PYTHONS, ids=name)
@pytest.mark.parametrize("ending", EXITS)
def test_exits_with_pending_awaits_are_quiet(
    tmp_path: Path, etcd: Service, run_id: str, python: str, ending: str
) -> None:
    source = PATIENT_EXIT + EXIT.format(run_id=run_id, endpoint=etcd.endpoint) + EXITS[ending]
    program = Program(tmp_path, source, python=python)
    assert program.wait() == 0, program.output
    for bad in ("panicked", "Fatal", "SystemExit", "RendezvousError", "LeftError"):
        assert bad not in program.output, program.output
    assert etcd.nodes(run_id) == []
