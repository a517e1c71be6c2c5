"""`lattice_rdzv.aio` in event loops other than that of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import uvloop
from harness.programs import PATIENT_EXIT, Program
from harness.service import Service

import lattice_rdzv
from lattice_rdzv import aio

WAITS = 1000


class Uvloop:
    """Runs scenarios in uvloop."""

    @staticmethod
    def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
        """The result of a scenario."""

        async def main() -> Any:
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
            return await scenario()

        return uvloop.run(main())

    @staticmethod
    async def together(*scenarios: Callable[[], Awaitable[Any]]) -> list[Any]:
        """The results of scenarios that run at the same time."""
        return list(await asyncio.gather(*(scenario() for scenario in scenarios)))

    @staticmethod
    async def is_cancelled(scenario: Callable[[], Awaitable[Any]]) -> bool:
        """Cancels a scenario after 50 ms."""
        task = asyncio.ensure_future(scenario())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()


class Trio:
    """Runs scenarios in trio."""

    @staticmethod
    def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
        """The result of a scenario."""
        return trio.run(scenario)

    @staticmethod
    async def together(*scenarios: Callable[[], Awaitable[Any]]) -> list[Any]:
        """The results of scenarios that run at the same time."""
        results: list[Any] = [None] * len(scenarios)

        async def keep(place: int) -> None:
            results[place] = await scenarios[place]()

        async with trio.open_nursery() as nursery:
            for place in range(len(scenarios)):
                nursery.start_soon(keep, place)
        return results

    @staticmethod
    async def is_cancelled(scenario: Callable[[], Awaitable[Any]]) -> bool:
        """Cancels a scenario after 50 ms."""
        with trio.move_on_after(0.05) as scope:
            await scenario()
        return scope.cancelled_caught


Loop = Uvloop | Trio


@pytest.fixture(params=[Uvloop, Trio], ids=["uvloop", "trio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """How scenarios run."""
    made: Loop = request.param()
    return made


async def joined(endpoint: str, run_id: str, **settings: Any) -> aio.Run:
    return await aio.join(run_id, endpoint=endpoint, local_address="127.0.0.1", settle_time=0.1, **settings)


def test_nodes_of_one_loop_form_a_world_and_share_a_store(loop: Loop, etcd: Service, run_id: str) -> None:
    def node(name: str) -> Callable[[], Awaitable[tuple[int, int, list[str]]]]:
        async def scenario() -> tuple[int, int, list[str]]:
            async with await joined(etcd.endpoint, run_id, nnodes=2, node_name=name) as run:
                world = await run.next_world()
                await world.store.set(f"seen/{world.rank}", b"1")
                await world.store.multi_wait(["seen/0", "seen/1"])
                return world.rank, world.size, sorted(member.name for member in await world.members())

        return scenario

    async def both() -> list[tuple[int, int, list[str]]]:
        return await loop.together(node("node-1"), node("node-2"))

    names = ["node-1", "node-2"]
    assert sorted(loop.run(both)) == [(0, 2, names), (1, 2, names)]
    assert etcd.nodes(run_id) == []


def test_server_of_the_loop_is_waited_for_and_stopped(loop: Loop, run_id: str) -> None:
    async def scenario() -> tuple[bool, int, bool, list[bool]]:
        async with await aio.serve(port=0) as server:
            early = await server.wait(0.01)
            async with await joined(server.endpoint, run_id, nnodes=1) as run:
                size = (await run.next_world()).size
            assert "Server http://127.0.0.1" in repr(server)

            async def stop() -> bool:
                await server.stop()
                await server.stop()
                return True

            ended = await loop.together(server.wait, stop)
        return early, size, await server.wait(), ended

    assert loop.run(scenario) == (False, 1, True, [True, True])


def test_server_that_cannot_listen_is_an_error(loop: Loop) -> None:
    async def scenario() -> None:
        async with await aio.serve(port=0) as server:
            port = int(server.endpoint.rsplit(":", 1)[1])
            with pytest.raises(lattice_rdzv.SettingsError, match=f"port {port}"):
                await aio.serve(port=port)
            with pytest.raises(lattice_rdzv.SettingsError, match="`user` needs `password_file`"):
                await aio.serve(port=0, user="ops")

    loop.run(scenario)


def test_cancelled_wait_ends_no_other_and_loses_nothing(loop: Loop, etcd: Service, run_id: str) -> None:
    async def scenario() -> tuple[list[bool], bytes | None, bytes | None]:
        async with await joined(etcd.endpoint, run_id, nnodes=1) as run:
            store = (await run.next_world()).store
            cancelled = [await loop.is_cancelled(lambda: store.wait("key")), await loop.is_cancelled(run.wait_change)]

            async def waits() -> bytes:
                return await store.wait("key")

            async def sets() -> bytes:
                cancelled.append(await loop.is_cancelled(lambda: store.queue_pop("queue")))
                await store.queue_push("queue", b"item")
                await store.set("key", b"value")
                return b""

            value, _ = await loop.together(waits, sets)
            return cancelled, value, await store.queue_pop("queue")

    assert loop.run(scenario) == ([True, True, True], b"value", b"item")


def test_waits_take_no_threads(loop: Loop, etcd: Service, run_id: str) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    async def scenario() -> tuple[int, int, list[bytes]]:
        async with await joined(etcd.endpoint, run_id, nnodes=1) as run:
            store = (await run.next_world()).store
            await store.set("there", b"")
            before = threads()

            async def waits() -> bytes:
                return await store.wait("key")

            async def counts() -> int:
                await store.wait("there")
                during = threads()
                await store.set("key", b"value")
                return during

            *values, during = await loop.together(*[waits] * WAITS, counts)
            return before, during, values

    before, during, values = loop.run(scenario)
    # Other threads of this process may start meanwhile.
    assert during < before + 10
    assert values == [b"value"] * WAITS


EXIT = """
import threading, trio
from lattice_rdzv import aio
ready = threading.Event()
async def scenario(seconds):
    run = await aio.join({run_id!r}, nnodes=1, endpoint={endpoint!r}, node_name="node-1", local_address="127.0.0.1")
    world = await run.next_world()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.wait_change)
        for number in range(20):
            nursery.start_soon(world.store.wait, f"never-{{number}}")
        await trio.sleep(0.05)
        ready.set()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
"""
ENDINGS = {
    "trio.run": "trio.run(scenario, 0)",
    "trio.run of a daemon thread": """
threading.Thread(target=trio.run, args=(scenario, 60), daemon=True).start()
assert ready.wait(60)
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_exits_with_pending_awaits_in_trio_are_quiet(tmp_path: Path, etcd: Service, run_id: str, ending: str) -> None:
    source = PATIENT_EXIT + EXIT.format(run_id=run_id, endpoint=etcd.endpoint) + ENDINGS[ending]
    program = Program(tmp_path, source)
    assert program.wait() == 0, program.output
    for bad in ("panicked", "Fatal", "Error", "Traceback"):
        assert bad not in program.output, program.output
    assert etcd.nodes(run_id) == []
