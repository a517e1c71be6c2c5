"""The same API, to be awaited: each call runs in a thread of its own.

    from lattice_rdzv import aio

    async with await aio.join("my-run", nnodes="2:4") as run:
        world = await run.next_world()
        ...

Problem: a thread that waits cannot be cancelled; asyncio has few threads, and waits for them when it ends, though a call
may last for minutes while the service is away. Choice: daemon threads. A task that is cancelled interrupts the waits of
its node until its thread has ended; another task's wait on the same node, interrupted with it, begins again with what is
left of its time. A world that comes at the very moment when its wait is cancelled is returned by the next one. Writes are
not interrupted, because half a write helps nobody: one whose task is cancelled goes on to its own end. A `queue_pop` both
waits and writes: a value that it takes at the moment when it is cancelled is kept for this node's next `queue_pop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from lattice_rdzv import _core, _run
from lattice_rdzv._core import Change, Member

__all__ = ["Run", "Store", "World", "join"]

P = ParamSpec("P")
T = TypeVar("T")

# Between two interrupts of a thread that nobody waits for any more: one that came before its wait has no effect.
_BETWEEN_INTERRUPTS_SECONDS = 0.02


async def join(run_id: str | None = None, **arguments: Any) -> Run:
    """Joins a run; the arguments, defaults and errors are those of `lattice_rdzv.join`."""
    joining = _Thread(lambda: _run.join(run_id, **arguments))
    try:
        return Run(await joining.future)
    except asyncio.CancelledError:
        # The node may yet come into being: it must not stay behind, a member that nobody holds.
        joining.abandon(lambda run: run.leave())
        raise


class Run:
    """`lattice_rdzv.Run`, to be awaited. Made by `join`; use it with `async with`, which leaves at the end."""

    def __init__(self, run: _run.Run) -> None:
        self._run = run
        # A wait for a world that was cancelled: interrupted, it ends soon, but a world may have come before that.
        self._cancelled: asyncio.Future[_core.World] | None = None

    async def next_world(self, *, port: int | None = None, timeout_seconds: float | None = None) -> World:
        """Waits for the next world; see `lattice_rdzv.Run.next_world`."""
        world = await self._world_of_cancelled()
        if world is None:
            world = await _wait(
                self._run._node,
                timeout_seconds,
                lambda left: self._run.next_world(port=port, timeout_seconds=left),
                cancelled=self._keep,
            )
        return World(self._run._node, world)

    def _keep(self, cancelled: asyncio.Future[_core.World]) -> None:
        self._cancelled = cancelled

    async def _world_of_cancelled(self) -> _core.World | None:
        cancelled = self._cancelled
        if cancelled is None:
            return None
        # What it failed with, if it was no interrupt, this call will fail with as well.
        await asyncio.wait([cancelled])
        self._cancelled = None
        world = cancelled.result() if cancelled.exception() is None else None
        return None if world is None or self._run.changing else world

    @property
    def changing(self) -> bool:
        """Whether the world last returned is about to be replaced, or was closed without success."""
        return self._run.changing

    @property
    def change(self) -> Change | None:
        """Why the world last returned is about to be replaced; `None` while it is not."""
        return self._run.change

    async def wait_change(self, *, timeout_seconds: float | None = None) -> Change | None:
        """Waits for a change; see `lattice_rdzv.Run.wait_change`."""
        return await _wait(self._run._node, timeout_seconds, lambda left: self._run.wait_change(timeout_seconds=left))

    async def store(self, *, timeout_seconds: float | None = None) -> Store:
        """A key-value space of the whole run, once that has begun. Default limit: `join_timeout`."""
        node = self._run._node
        # Said here, so that a wait which begins again has what is left of it, and not all of it.
        limit_seconds = self._run._settings.join_timeout_seconds if timeout_seconds is None else timeout_seconds
        return Store(node, await _wait(node, limit_seconds, lambda left: node.store(timeout_seconds=left)))

    async def leave(self, *, timeout_seconds: float | None = None) -> bool:
        """Leaves the run; see `lattice_rdzv.Run.leave`."""
        return await _call(self._run.leave, timeout_seconds=timeout_seconds)

    async def close(
        self,
        outcome: Literal["succeeded", "failed", "ended"] = "succeeded",
        *,
        why: str = "",
        timeout_seconds: float | None = None,
    ) -> bool:
        """Closes the run; see `lattice_rdzv.Run.close`."""
        return await _call(self._run.close, outcome, why=why, timeout_seconds=timeout_seconds)

    @property
    def closed(self) -> tuple[str, str, str] | None:
        """Outcome, by whom, and why; `None` while the run is open as far as this node knows."""
        return self._run.closed

    @property
    def run_id(self) -> str:
        """Which run."""
        return self._run.run_id

    @property
    def name(self) -> str:
        """What this node is called."""
        return self._run.name

    @property
    def node_id(self) -> str:
        """What no other node is ever called."""
        return self._run.node_id

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._run.endpoint

    @property
    def state(self) -> Literal["joining", "seeking", "spare", "member", "uncertain", "closed", "left"]:
        """Where this node is."""
        return self._run.state

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    def __repr__(self) -> str:
        return f"<aio.{repr(self._run)[1:]}"


class World:
    """`lattice_rdzv.World`, whose members and store are to be awaited."""

    def __init__(self, node: _core.Node, world: _core.World) -> None:
        self._node = node
        self._world = world

    @property
    def run_id(self) -> str:
        """Which run."""
        return self._world.run_id

    @property
    def life(self) -> str:
        """Which job under that run id."""
        return self._world.life

    @property
    def round(self) -> int:
        """Which time the run formed."""
        return self._world.round

    @property
    def rank(self) -> int:
        """Its own rank."""
        return self._world.rank

    @property
    def size(self) -> int:
        """How many nodes."""
        return self._world.size

    @property
    def master_address(self) -> str:
        """Where rank 0 serves."""
        return self._world.master_address

    @property
    def master_port(self) -> int:
        """On which port."""
        return self._world.master_port

    @property
    def why(self) -> str:
        """Why the round was formed."""
        return self._world.why

    @property
    def store(self) -> Store:
        """The store of this round."""
        return Store(self._node, self._world.store)

    async def members(self, *, timeout_seconds: float = 30.0) -> list[Member]:
        """All members by rank, read from the service now."""
        return await _wait(self._node, timeout_seconds, lambda left: self._world.members(timeout_seconds=left or 0.0))

    def __repr__(self) -> str:
        return repr(self._world)


class Store:
    """`lattice_rdzv.Store`, to be awaited."""

    def __init__(self, node: _core.Node, store: _core.Store) -> None:
        self._node = node
        self._store = store

    async def set(self, key: str, value: bytes, *, timeout_seconds: float = 300.0) -> None:
        """Puts a value."""
        await _call(self._store.set, key, value, timeout_seconds=timeout_seconds)

    async def get(self, key: str, *, timeout_seconds: float = 300.0, until_change: bool = False) -> bytes | None:
        """Waits for the key. With `until_change`, `None` as soon as the round's world is known to change."""
        return await _wait(
            self._node,
            timeout_seconds,
            lambda left: self._store.get(key, timeout_seconds=left or 0.0, until_change=until_change),
        )

    async def get_now(self, keys: Sequence[str], *, timeout_seconds: float = 300.0) -> list[bytes | None]:
        """What the keys hold now; `None` where there is nothing."""
        return await _call(self._store.get_now, keys, timeout_seconds=timeout_seconds)

    async def multi_get(
        self, keys: Sequence[str], *, timeout_seconds: float = 300.0, until_change: bool = False
    ) -> list[bytes | None]:
        """Waits for all of the keys."""
        return await _wait(
            self._node,
            timeout_seconds,
            lambda left: self._store.multi_get(keys, timeout_seconds=left or 0.0, until_change=until_change),
        )

    async def multi_set(self, items: Sequence[tuple[str, bytes]], *, timeout_seconds: float = 300.0) -> None:
        """Puts many values."""
        await _call(self._store.multi_set, items, timeout_seconds=timeout_seconds)

    async def add(self, key: str, amount: int = 1, *, timeout_seconds: float = 300.0) -> int:
        """Adds to a counter and returns its new value."""
        return await _call(self._store.add, key, amount, timeout_seconds=timeout_seconds)

    async def compare_set(self, key: str, expected: bytes, desired: bytes, *, timeout_seconds: float = 300.0) -> bytes:
        """Puts `desired` if the key holds `expected`; returns what it holds afterwards."""
        return await _call(self._store.compare_set, key, expected, desired, timeout_seconds=timeout_seconds)

    async def append(self, key: str, value: bytes, *, timeout_seconds: float = 300.0) -> None:
        """Appends to a value."""
        await _call(self._store.append, key, value, timeout_seconds=timeout_seconds)

    async def delete(self, key: str, *, timeout_seconds: float = 300.0) -> bool:
        """Deletes a key; whether there was one."""
        return await _call(self._store.delete, key, timeout_seconds=timeout_seconds)

    async def check(self, keys: Sequence[str], *, timeout_seconds: float = 300.0) -> bool:
        """Whether all of the keys are there."""
        return await _call(self._store.check, keys, timeout_seconds=timeout_seconds)

    async def count(self, *, timeout_seconds: float = 300.0) -> int:
        """How many keys there are."""
        return await _call(self._store.count, timeout_seconds=timeout_seconds)

    async def list(self, *, timeout_seconds: float = 300.0) -> list[str]:
        """The keys."""
        return await _call(self._store.list, timeout_seconds=timeout_seconds)

    async def queue_push(self, key: str, value: bytes, *, timeout_seconds: float = 300.0) -> None:
        """Puts a value at the end of a queue."""
        await _call(self._store.queue_push, key, value, timeout_seconds=timeout_seconds)

    async def queue_pop(self, key: str, *, block: bool = True, timeout_seconds: float = 300.0) -> bytes | None:
        """Takes the first value of a queue, waiting for one with `block`; else `None` if there is none.

        A value that is taken at the moment when this task is cancelled is kept for this node's next `queue_pop`.
        """
        return await _wait(
            self._node,
            timeout_seconds,
            lambda left: self._store.queue_pop(key, block=block, timeout_seconds=left or 0.0),
            late=lambda value: None if value is None else self._store.queue_keep(key, value),
        )

    async def queue_len(self, key: str, *, timeout_seconds: float = 300.0) -> int:
        """How many values a queue holds."""
        return await _call(self._store.queue_len, key, timeout_seconds=timeout_seconds)

    def __repr__(self) -> str:
        return repr(self._store)


async def _wait(
    node: _core.Node,
    timeout_seconds: float | None,
    call: Callable[[float | None], T],
    *,
    cancelled: Callable[[asyncio.Future[T]], None] | None = None,
    late: Callable[[T], object] | None = None,
) -> T:
    """Runs a call that waits, with what is left of its time; interrupts the node's waits if this task is cancelled, and
    has `cancelled` told of the future of the call that is left behind, and `late` of its answer."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        waiting = _Thread(functools.partial(call, left))
        try:
            # The future is the thread's, and outlives the task that waits for it.
            await asyncio.wait([waiting.future])
        except asyncio.CancelledError:
            waiting.abandon(late, interrupt=node.interrupt)
            if cancelled is not None:
                cancelled(waiting.future)
            raise
        try:
            return waiting.future.result()
        except InterruptedError:
            # Another task of this node was cancelled, not this one.
            continue


async def _call(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Runs a call that is not to be interrupted; if this task is cancelled, it goes on behind its back."""
    calling = _Thread(functools.partial(call, *arguments, **named))
    try:
        await asyncio.wait([calling.future])
    except asyncio.CancelledError:
        calling.abandon(lambda _: None)
        raise
    return calling.future.result()


class _Thread(Generic[T]):
    """A call in a daemon thread of its own, and a future of the running loop that it resolves."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._abandoned = False
        self._late: Callable[[T], object] | None = None
        self._answers: list[T] = []
        self.future: asyncio.Future[T] = self._loop.create_future()
        # Or asyncio complains of what nobody waits for any more.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="lattice-rdzv-call", daemon=True).start()

    def abandon(
        self, late: Callable[[T], object] | None = None, *, interrupt: Callable[[], None] | None = None
    ) -> None:
        """Nobody waits for the answer any more: `late` is given it in a thread, and `interrupt` is called until the
        thread has ended."""
        with self._lock:
            self._abandoned = True
            self._late = late
            answers = list(self._answers)
        if late is not None and answers:
            threading.Thread(target=late, args=(answers[0],), daemon=True).start()
        if interrupt is not None and not self._done.is_set():
            # At once, and again: it may not have begun to wait yet. The loop may be gone by then.
            interrupt()
            threading.Thread(target=self._interrupt, args=(interrupt,), daemon=True).start()

    def _interrupt(self, interrupt: Callable[[], None]) -> None:
        while not self._done.wait(_BETWEEN_INTERRUPTS_SECONDS):
            interrupt()

    def _run(self) -> None:
        try:
            with self._lock:
                if self._abandoned and self._late is None:
                    raise InterruptedError("abandoned before it began")
            answer = self._call()
        except Exception as error:
            self._tell(functools.partial(self.future.set_exception, error))
        else:
            with self._lock:
                late = self._late
                if not self._abandoned:
                    self._answers.append(answer)
            if late is not None:
                late(answer)
            self._tell(functools.partial(self.future.set_result, answer))
        finally:
            self._done.set()

    def _tell(self, resolve: Callable[[], None]) -> None:
        def unless_cancelled() -> None:
            if not self.future.done():
                resolve()

        # The loop may have ended without this thread.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(unless_cancelled)
