"""Ends the pending collectives of one world when the run reports that the world changes.

Problem: a rank that waits for a dead rank, or for one that waits itself, stays in its collective until the group's timeout.
Design: a thread for each world waits for the run's change. It ends all waits of this world: those that Python waits for by
an exception, and those inside torch by breaking the group's connections. Each world has a separate interrupt, so a late
interrupt cannot affect the next world. New nodes alone end no wait: the program lets them in at its next step. If the
program does not return to `Job.run` within the limit after that, the thread ends the process with an explanation, because
the other members continue without it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.futures import Future

from lattice_rdzv import _core
from lattice_rdzv._run import Run
from lattice_rdzv._world import World
from lattice_rdzv.errors import RendezvousError, StoreTimeoutError
from lattice_rdzv.torch.elastic.errors import WorldChanged

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

# The status of a process that ends itself, because it did not return from its step.
STUCK_STATUS = 75
# The key of the round's store that a member sets when it ends a world whose change was announced before.
_ENDED = "lattice_rdzv/elastic/ended"
_ENDED_SECONDS = 5.0
# How often the thread looks whether its world is over, and after new nodes were announced, whether all members are alive.
_LOOK_SECONDS = 1.0
# How often connections are broken again until the program has returned: a wait may begin after the first time.
_AGAIN_SECONDS = 0.02


class Breakable(Protocol):
    """What the interrupt breaks, besides the waits of Python."""

    def break_waits(self) -> None:
        """Ends the waits inside torch. Called several times, from the interrupt's thread."""


class Interrupt:
    """The interrupt of one world. `wait` and `guard` are for the thread that trains."""

    def __init__(self, run: Run, world: World, *, limit_seconds: float) -> None:
        self._run = run
        self._world = world
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._waits: dict[int, Callable[[Exception], None]] = {}
        self._works: dict[int, dist.Work] = {}
        self._next = 0
        self._fired: _core.Change | None = None
        self._growth: _core.Change | None = None
        self._breakable: Breakable | None = None
        self._over = threading.Event()

    def start(self, breakable: Breakable) -> None:
        """Starts to follow the run, and breaks this when the world changes."""
        self._breakable = breakable
        threading.Thread(target=self._follow, name="lattice-rdzv-interrupt", daemon=True).start()

    def close(self) -> None:
        """Ends the interrupt, because the program has returned from this world."""
        self._over.set()

    @property
    def fired(self) -> _core.Change | None:
        """The change that has ended this world's waits, or `None`."""
        return self._fired

    @property
    def growth(self) -> _core.Change | None:
        """The announcement that new nodes wait, or `None`."""
        return self._growth

    def check(self) -> None:
        """Raises `WorldChanged` if the waits of this world were ended."""
        if self._fired is not None:
            raise WorldChanged(self._fired)

    def end_world(self, why: str) -> None:
        """Notifies the other members that this one leaves the world. This is necessary only if another change was announced before,
        because a round announces one change."""
        if self._growth is None:
            return
        try:
            self._world.store.set(_ENDED, why.encode(), timeout_seconds=_ENDED_SECONDS)
        except RendezvousError as error:
            logger.warning("cannot announce the end of round %d: %s", self._world.round, error)

    def fire(self, change: _core.Change) -> None:
        """Ends all waits of this world. Later calls do nothing."""
        with self._lock:
            if self._fired is not None or self._over.is_set():
                return
            self._fired = change
            waits = list(self._waits.values())
            self._waits.clear()
        for end in waits:
            end(WorldChanged(change))

    def wait(self, work: dist.Work) -> None:
        """Waits for a collective that was started with `async_op=True`.

        Raises:
            WorldChanged: The world ended first.
            RuntimeError: The collective failed.
        """
        done = threading.Event()
        number = self._register(lambda _error: done.set(), work)

        def finish(_: Future[Any]) -> None:
            self._forget(number)
            done.set()

        work.get_future().add_done_callback(finish)
        done.wait()
        self.check()
        work.wait()

    def breakable(self, work: dist.Work, result_of: Callable[[Any], torch.Tensor]) -> Future[torch.Tensor]:
        """Returns a future of the collective's result that this interrupt can end with an exception."""
        trigger: Future[Any] = Future()
        settle = _once(trigger.set_result)
        number = self._register(settle, work)

        def finish(inner: Future[Any]) -> None:
            self._forget(number)
            try:
                settle(result_of(inner.value()))
            except Exception as error:
                settle(error)

        work.get_future().add_done_callback(finish)
        # A callback that raises makes an exception of the C++ future, which a plain `set_exception` does not.
        return trigger.then(_value_or_error)

    def stuck(self) -> list[dist.Work]:
        """The collectives that have not ended."""
        with self._lock:
            return [work for work in self._works.values() if not work.is_completed()]

    def _register(self, end: Callable[[Exception], None], work: dist.Work) -> int:
        with self._lock:
            self._next += 1
            self._works[self._next] = work
            fired = self._fired
            if fired is None:
                self._waits[self._next] = end
            number = self._next
        if fired is not None:
            end(WorldChanged(fired))
        return number

    def _forget(self, number: int) -> None:
        with self._lock:
            self._waits.pop(number, None)
            self._works.pop(number, None)

    def _follow(self) -> None:
        try:
            change = self._next_change()
        except RendezvousError as error:
            # The node has left.
            logger.debug("round %d is not followed any more: %s", self._world.round, error)
            return
        if change is None:
            return
        self.fire(change)
        if self._fired is not None:
            self._break()

    def _next_change(self) -> _core.Change | None:
        """Waits for the change that ends this world. Returns `None` if the program has returned first."""
        while not self._over.is_set():
            if self._fired is not None:
                return self._fired
            change = self._run.wait_change(timeout_seconds=_LOOK_SECONDS)
            closed = self._run.closed
            if change is None and closed is not None:
                return _core.Change(self._world.round, "closed", f"the run was closed as {closed.outcome}", [closed.by])
            if change is None:
                continue
            if change.round != self._world.round:
                return None
            if change.kind != "newcomers":
                return change
            self._growth = change
            ended = self._wait_for_end_after_growth()
            if ended is not None:
                return ended
        return None

    def _wait_for_end_after_growth(self) -> _core.Change | None:
        """Waits until a member ends a world whose change was already announced, or is gone without a notification."""
        while not self._over.is_set() and self._fired is None:
            closed = self._run.closed
            if closed is not None:
                return _core.Change(self._world.round, "closed", f"the run was closed as {closed.outcome}", [closed.by])
            try:
                why = self._world.store.wait(_ENDED, timeout_seconds=_LOOK_SECONDS).decode(errors="replace")
                return _core.Change(self._world.round, "seeking", why, [])
            except StoreTimeoutError:
                pass
            present = self._present()
            if present is not None and len(present) < self._world.size:
                missing = self._world.size - len(present)
                return _core.Change(self._world.round, "lost", f"lost {missing} of {self._world.size} nodes", [])
        return self._fired

    def _present(self) -> list[str] | None:
        try:
            return self._run._node.unfinished().wait()
        except RendezvousError:
            # Without the service, the present members are unknown.
            return None

    def _break(self) -> None:
        """Breaks the connections until the program has returned, and ends the process if that takes too long."""
        # Counts intervals instead of reading a clock, because a process that was stopped meanwhile is not stuck.
        rounds = int(self._limit_seconds / _AGAIN_SECONDS)
        for _ in range(rounds):
            if self._breakable is not None:
                self._breakable.break_waits()
            if self._over.wait(_AGAIN_SECONDS):
                return
        why = self._fired.why if self._fired is not None else ""
        try:
            self._report_stuck(why)
        finally:
            # Also if the program has replaced stderr by something that cannot be written to.
            os._exit(STUCK_STATUS)

    def _report_stuck(self, why: str) -> None:
        sys.stderr.write(
            f"lattice-rdzv: this process did not return from its step within {self._limit_seconds:g} s "
            f"(`step_timeout_seconds`) after its world ended ({why}), so it ends with status {STUCK_STATUS}; the other "
            "members continue without it. Its threads:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)


def _once(call: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns a function whose first call calls `call`, and whose later calls do nothing."""
    lock = threading.Lock()

    def first(value: Any) -> None:
        # The first caller takes the lock and never releases it.
        if lock.acquire(blocking=False):
            call(value)

    return first


def _value_or_error(trigger: Future[Any]) -> torch.Tensor:
    value = trigger.value()
    if isinstance(value, Exception):
        raise value
    assert isinstance(value, torch.Tensor)
    return value
