"""The API of `lattice_rdzv` for asyncio and trio: the same names, to be awaited.

    from lattice_rdzv import aio

    async with await aio.join("my-run", nnodes="2:4") as run:
        world = await run.next_world()
        ...

A call that waits takes no thread. It is a task of the core, which leaves its result with the call and writes one byte to
a descriptor that the event loop watches, so the result becomes a Python object on the loop's thread. Any number of tasks
can use one run, in trio and in any event loop of asyncio whose `add_reader` watches descriptors, such as uvloop's.

Cancelling a task ends the call that it awaits, and no other. A world or an item of a queue that arrives at that moment is
returned by the next call. A write continues until its end, and so does `join`, whose node then leaves again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

from lattice_rdzv import _core, _process, _run, _serve, _status, _store, _world
from lattice_rdzv._calls import Calls
from lattice_rdzv._core import Change, Member
from lattice_rdzv.errors import ClosedError

if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import Buffer, Unpack

    from lattice_rdzv.types import JoinSettings, RunStatus, Suspicion

__all__ = ["Run", "Server", "Store", "World", "join", "serve", "status"]

T = TypeVar("T")


async def join(
    run_id: str | None = None,
    *,
    nnodes: int | str | tuple[int, int] | None = None,
    endpoint: str | Sequence[str] | None = None,
    node_name: str | None = None,
    local_address: str | None = None,
    port: int | None = None,
    topology: str | None = None,
    tenant: str | None = None,
    submission: str | None = None,
    **settings: Unpack[JoinSettings],
) -> Run:
    """Joins a run; the arguments, defaults and errors are those of `lattice_rdzv.join`."""
    run = Run(
        _run.settings_of(
            run_id,
            nnodes=nnodes,
            endpoint=endpoint,
            node_name=node_name,
            local_address=local_address,
            port=port,
            topology=topology,
            tenant=tenant,
            submission=submission,
            **settings,
        )
    )
    with run._membership.joining() as call:
        run._membership.joined(await _result(call))
    run._follow_signals()
    return run


async def status(
    run_id: str | None = None,
    *,
    endpoint: str | Sequence[str] | None = None,
    tenant: str | None = None,
    timeout_seconds: float = 5.0,
    **settings: Unpack[JoinSettings],
) -> RunStatus:
    """Reads a run without joining it; the arguments, the result and the errors are those of `lattice_rdzv.status`."""
    call = _status.call(run_id, endpoint=endpoint, tenant=tenant, timeout_seconds=timeout_seconds, **settings)
    return _status.report(await _result(call))


async def serve(
    host: str = _serve.DEFAULT_HOST,
    port: int = _serve.DEFAULT_PORT,
    *,
    cert: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
    client_ca: str | PathLike[str] | None = None,
    user: str | None = None,
    password_file: str | PathLike[str] | None = None,
    metrics: tuple[str, int] | None = None,
    dashboard: tuple[str, int] | None = None,
    dashboard_hosts: Sequence[str] = (),
) -> Server:
    """Starts a server in this process; the arguments and errors are those of `lattice_rdzv.serve`."""
    _process.begin()
    starting = _core.Server.start(
        host, port, cert=cert, key=key, client_ca=client_ca, user=user, password_file=password_file,
        metrics=metrics, dashboard=dashboard, dashboard_hosts=list(dashboard_hosts),
    )  # fmt: skip
    return Server(_process.serving(await _result(starting)))


def _end_loop(number: int) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _run.end_program(number)
    else:
        # An exception that is raised between any two operations of a loop can lose the next step of a task. The end of the
        # loop would then wait for that task forever.
        loop.call_soon_threadsafe(_run.end_program, number)


class Run(_run.Part):
    """`lattice_rdzv.Run` for asyncio. Made by `join`; use it with `async with`, which leaves at the end.

    If the event loop runs in the main thread, SIGTERM announces at once that this node leaves and ends the loop with
    `SystemExit` (status 143), unless the program handles SIGTERM itself, for example by `loop.add_signal_handler`, or
    `leave_on_signal` is false. `asyncio.run` then cancels all tasks, and the `async with` blocks leave. A task that does
    not return to the loop delays this, but not the announcement.

    Under trio, no signal is handled. A program that handles SIGTERM itself, for example by
    `trio.open_signal_receiver`, calls `leave`, or leaves the `async with` block.
    """

    _on_signal = staticmethod(_end_loop)

    def _follow_signals(self) -> None:
        # trio gives a handler no way to end its tasks in order, so the signal stays the program's.
        if not _is_trio():
            super()._follow_signals()

    async def next_world(
        self, *, port: int | None = None, hold_port: bool = False, timeout_seconds: float | None = None
    ) -> World:
        """Waits for the next world; see `lattice_rdzv.Run.next_world`."""
        return self._enter(World, await _result(self._seek(port, hold_port, timeout_seconds)), hold_port)

    async def __aiter__(self) -> AsyncIterator[World]:
        """Yields each world; see `lattice_rdzv.Run.__iter__`."""
        while True:
            try:
                world = await self.next_world()
            except ClosedError as error:
                if error.outcome == "succeeded":
                    return
                raise
            yield world

    async def wait_change(self, *, timeout_seconds: float | None = None) -> Change | None:
        """Waits for a change; see `lattice_rdzv.Run.wait_change`."""
        return await _result(self._node.wait_change(timeout_seconds=timeout_seconds))

    async def suspect(self, rank: int, why: str = "", *, timeout_seconds: float = 5.0) -> Suspicion:
        """Reports a broken connection to a member; see `lattice_rdzv.Run.suspect`."""
        return _run.verdict(await _result(self._node.suspect(rank, why=why, timeout_seconds=timeout_seconds)))

    @property
    def store(self) -> Store:
        """A key-value space of the whole run; see `lattice_rdzv.Run.store`."""
        return Store(self._node.store())

    async def leave(self, *, timeout_seconds: float | None = None) -> bool:
        """Leaves the run; see `lattice_rdzv.Run.leave`."""
        return await self._end(lambda node: node.leave(timeout_seconds=timeout_seconds))

    async def close(
        self,
        outcome: Literal["succeeded", "failed", "ended"] = "succeeded",
        *,
        why: str = "",
        timeout_seconds: float | None = None,
    ) -> bool:
        """Closes the run; see `lattice_rdzv.Run.close`."""
        return await self._end(lambda node: node.close(outcome, why=why, timeout_seconds=timeout_seconds))

    async def _end(self, leave: Callable[[_core.Node], _core.Call[bool]]) -> bool:
        # As in `Membership.end`.
        if not self._membership.is_of_this_process:
            return False
        left = False
        with self._membership.ending() as node:
            if node is not None:
                left = await _result(leave(node))
        return left

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave(timeout_seconds=self._leave_limit(kind))


class Server(_serve.ServerFacts):
    """`lattice_rdzv.Server` for asyncio. Made by `serve`; use it with `async with`, which stops it at the end."""

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the server is stopped; see `lattice_rdzv.Server.wait`."""
        return await _result(self._native.wait(timeout_seconds=timeout_seconds))

    async def stop(self) -> None:
        """Stops the server; see `lattice_rdzv.Server.stop`."""
        _process.stopped(self._native)
        await _result(self._native.stop())

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class World(_world.WorldFacts):
    """`lattice_rdzv.World` for asyncio."""

    __slots__ = ()

    @property
    def store(self) -> Store:
        """Key-value space of this round; see `lattice_rdzv.World.store`."""
        return Store(self._core.store)

    async def members(self, *, timeout_seconds: float | None = 30.0) -> list[Member]:
        """Reads all members; see `lattice_rdzv.World.members`."""
        return await _result(self._core.members(timeout_seconds=timeout_seconds))


class Store:
    """`lattice_rdzv.Store` for asyncio."""

    __slots__ = ("_core",)

    def __init__(self, core: _core.Store) -> None:
        self._core = core

    async def set(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Sets the value of a key; see `lattice_rdzv.Store.set`."""
        await _result(self._core.set(key, value, timeout_seconds=timeout_seconds))

    async def get(self, key: str, *, timeout_seconds: float | None = 300.0) -> bytes | None:
        """Returns the present value of a key; see `lattice_rdzv.Store.get`."""
        return (await _result(self._core.get_now([key], timeout_seconds=timeout_seconds)))[0]

    async def wait(self, key: str, *, timeout_seconds: float | None = 300.0) -> bytes:
        """Waits for a key; see `lattice_rdzv.Store.wait`."""
        return _store._value(await _result(self._core.get(key, timeout_seconds=timeout_seconds)))

    async def multi_get(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> list[bytes | None]:
        """Returns the present values; see `lattice_rdzv.Store.multi_get`."""
        return await _result(self._core.get_now(keys, timeout_seconds=timeout_seconds))

    async def multi_wait(
        self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0, until_change: bool = False
    ) -> list[bytes | None]:
        """Waits for all keys; see `lattice_rdzv.Store.multi_wait`."""
        return await _result(self._core.multi_get(keys, timeout_seconds=timeout_seconds, until_change=until_change))

    async def multi_set(self, items: Sequence[tuple[str, Buffer]], *, timeout_seconds: float | None = 300.0) -> None:
        """Sets many values; see `lattice_rdzv.Store.multi_set`."""
        await _result(self._core.multi_set(items, timeout_seconds=timeout_seconds))

    async def add(self, key: str, amount: int = 1, *, timeout_seconds: float | None = 300.0) -> int:
        """Adds to a counter; see `lattice_rdzv.Store.add`."""
        return await _result(self._core.add(key, amount, timeout_seconds=timeout_seconds))

    async def compare_set(
        self, key: str, expected: Buffer, desired: Buffer, *, timeout_seconds: float | None = 300.0
    ) -> bool:
        """Sets a value if it is `expected`; see `lattice_rdzv.Store.compare_set`."""
        return (await _result(self._core.compare_set(key, expected, desired, timeout_seconds=timeout_seconds)))[0]

    async def append(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Appends to a value; see `lattice_rdzv.Store.append`."""
        await _result(self._core.append(key, value, timeout_seconds=timeout_seconds))

    async def delete(self, key: str, *, timeout_seconds: float | None = 300.0) -> bool:
        """Deletes a key; see `lattice_rdzv.Store.delete`."""
        return await _result(self._core.delete(key, timeout_seconds=timeout_seconds))

    async def check(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> bool:
        """Returns whether all keys exist now; see `lattice_rdzv.Store.check`."""
        return await _result(self._core.check(keys, timeout_seconds=timeout_seconds))

    async def count(self, *, timeout_seconds: float | None = 300.0) -> int:
        """Returns the number of keys; see `lattice_rdzv.Store.count`."""
        return await _result(self._core.count(timeout_seconds=timeout_seconds))

    async def list(self, *, timeout_seconds: float | None = 300.0) -> list[str]:
        """Returns the keys; see `lattice_rdzv.Store.list`."""
        return await _result(self._core.list(timeout_seconds=timeout_seconds))

    async def queue_push(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Adds a value at the end of a queue; see `lattice_rdzv.Store.queue_push`."""
        await _result(self._core.queue_push(key, value, timeout_seconds=timeout_seconds))

    async def queue_pop(self, key: str, *, block: bool = True, timeout_seconds: float | None = 300.0) -> bytes | None:
        """Removes and returns the first value of a queue; see `lattice_rdzv.Store.queue_pop`."""
        return await _result(self._core.queue_pop(key, block=block, timeout_seconds=timeout_seconds))

    async def queue_keep(self, key: str, value: Buffer) -> None:
        """Keeps a value for the next pop; see `lattice_rdzv.Store.queue_keep`."""
        await _result(self._core.queue_keep(key, value))

    async def queue_len(self, key: str, *, timeout_seconds: float | None = 300.0) -> int:
        """Returns the number of values in a queue; see `lattice_rdzv.Store.queue_len`."""
        return await _result(self._core.queue_len(key, timeout_seconds=timeout_seconds))

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__}>"

    # The name of `multi_get` before 0.2.0.
    get_now = multi_get


# Weak, because the calls refer to their loop. The loop keeps them as what its descriptor calls.
_calls: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Calls]] = weakref.WeakKeyDictionary()


async def _result(call: _core.Call[T]) -> T:
    """Awaits a call, and cancels it together with the task."""
    if _is_trio():
        from lattice_rdzv import _trio

        return await _trio.calls().result(call)
    loop = asyncio.get_running_loop()
    known = _calls.get(loop)
    calls = None if known is None else known()
    if calls is None:
        calls = Calls(asyncio.Event)
        loop.add_reader(calls.completions.fileno(), calls.wake)
        _calls[loop] = weakref.ref(calls)
    return await calls.result(call)


def _is_trio() -> bool:
    """Returns whether the caller is a task of trio, whose event loop may itself run in one of asyncio (guest mode)."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def _remove_readers() -> None:
    for loop, known in list(_calls.items()):
        calls = known()
        # A loop that is still running is in a daemon thread. Only that thread may change it, and the core sends it nothing more.
        if calls is not None and not loop.is_running() and not loop.is_closed():
            loop.remove_reader(calls.completions.fileno())


_process.before_exit(_remove_readers)
# The selector of a parent's loop is shared with the child, which must not change it.
os.register_at_fork(after_in_child=_calls.clear)
