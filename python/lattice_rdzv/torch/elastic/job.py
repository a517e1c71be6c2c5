"""The loop of an elastic job in one process: join, form a group, train, notice a change, form the next group, finish.

Problem: when one process of a job is lost, torchrun restarts all of them. Design: each training process is a node of the
run. When the world changes, the processes that are left end their collectives (`interrupt`), drop the broken group, and
form a fresh one in the next world (`backend`). They make their states equal (`transfer`) and call the training function
again. A second loss in between only begins the loop again: each round has a separate store.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from lattice_rdzv import _core, _run
from lattice_rdzv import _world as plain
from lattice_rdzv.errors import ClosedError
from lattice_rdzv.torch.elastic.backend import Backend, Group, backend_of
from lattice_rdzv.torch.elastic.errors import WorldChanged
from lattice_rdzv.torch.elastic.interrupt import Interrupt
from lattice_rdzv.torch.elastic.state import State
from lattice_rdzv.torch.elastic.store import WorldStore
from lattice_rdzv.torch.elastic.transfer import equalize
from lattice_rdzv.torch.elastic.world import Stopped, World, describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lattice_rdzv.types import JoinSettings

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

B = TypeVar("B")

FORM_TIMEOUT_SECONDS = 10.0
STEP_TIMEOUT_SECONDS = 60.0
# All members that are left request the next round within milliseconds, and no new one can be as fast.
SETTLE_SECONDS = 0.05
# How often in a row the group may fail without a loss and without progress, before that is the program's own error.
MOST_FAILURES = 5
# The default of torch for gloo.
COLLECTIVE_TIMEOUT_SECONDS = 1800.0
# The variables of `lattice-rdzv run` and of torchrun. `RANK` and `WORLD_SIZE` mean nothing here: the run gives the ranks.
_LOCAL_RANK = "LOCAL_RANK"
_LOCAL_SIZE = "LOCAL_WORLD_SIZE"


def join(
    run_id: str | None = None,
    *,
    nnodes: int | str | tuple[int, int] | None = None,
    endpoint: str | Sequence[str] | None = None,
    group_backend: str = "gloo",
    form_timeout_seconds: float = FORM_TIMEOUT_SECONDS,
    step_timeout_seconds: float = STEP_TIMEOUT_SECONDS,
    collective_timeout_seconds: float = COLLECTIVE_TIMEOUT_SECONDS,
    node_name: str | None = None,
    local_address: str | None = None,
    topology: str | None = None,
    tenant: str | None = None,
    submission: str | None = None,
    **settings: Unpack[JoinSettings],
) -> Job:
    """Joins a run with this process. `Job.run` then trains in it.

    Each training process is one node of the run, so `nnodes` counts processes. Set the CUDA device from `LOCAL_RANK` before,
    if the program uses one.

    Args:
        run_id: Name of the run, equal in all processes. Default: `LATTICE_RDZV_ID`.
        nnodes: Number of processes: `2`, or `"2:4"` or `(2, 4)` for at least 2 and at most 4. Default: `LATTICE_NNODES`.
        endpoint: Address of the rendezvous service, as for `lattice_rdzv.join`. Default: `LATTICE_RDZV_ENDPOINTS` and so on.
        group_backend: Backend of torch for the process groups. Only `gloo` is supported.
        form_timeout_seconds: Time limit in seconds for forming a group, for `build`, and for sending the state, each
            collective on its own. Default: 10.
        step_timeout_seconds: Time limit in seconds for a step in which the world changes, from the change until the program
            notices it. It must be longer than the longest time that the program spends outside of collectives. After it, the
            others form a world without this process, and this process ends with status 75 and an explanation. Default: 60.
        collective_timeout_seconds: Time limit in seconds for the collectives of the program. Default: 1800, as in torch.
        node_name: Name of this process. Default: the name of the host, with `/` and `LOCAL_RANK` if that is set.
        local_address: Address at which the other processes reach this one, as for `lattice_rdzv.join`.
        topology: Label of the location; processes with equal labels get adjacent ranks. Default: `LATTICE_RDZV_TOPOLOGY`, or
            the name of the host if `LOCAL_RANK` is set.
        tenant: As for `lattice_rdzv.join`.
        submission: As for `lattice_rdzv.join`.
        settings: As for `lattice_rdzv.join`. `rejoin_timeout` is `step_timeout_seconds` by default, and `settle_time` 0.05 s. If
            `LOCAL_RANK` is set, `node_index` follows from it and from the index of the machine, so that the ranks of a machine
            are in its order.

    Raises:
        ValueError: The backend is not supported.
        SettingsError: A setting is wrong, missing or unknown, or differs from that of the run.
        UnreachableError: The service was not found, or did not respond within `connect_timeout` (30 s).
        ClosedError: The run is closed.
    """
    group = backend_of(group_backend)
    place = _place(os.environ, socket.gethostname())
    given: dict[str, Any] = {"rejoin_timeout": step_timeout_seconds, "settle_time": SETTLE_SECONDS, **settings}
    if given.get("node_index") is None and place.node_index is not None:
        given["node_index"] = place.node_index
    if place.node_index is not None:
        # The launcher serves the embedded server if there is no other service: a process that hosts it cannot be lost.
        given.setdefault("is_host", False)
    if topology is None and not os.environ.get("LATTICE_RDZV_TOPOLOGY"):
        topology = place.topology
    if node_name is None and not os.environ.get("LATTICE_RDZV_NODE_NAME"):
        node_name = place.name
    # A departure is announced after the step, and not when the signal arrives.
    given["leave_on_signal"] = False
    run = _run.join(
        run_id,
        nnodes=nnodes,
        endpoint=endpoint,
        node_name=node_name,
        local_address=local_address,
        topology=topology,
        tenant=tenant,
        submission=submission,
        **given,
    )
    limits = Limits(
        form=timedelta(seconds=form_timeout_seconds),
        collective=timedelta(seconds=collective_timeout_seconds),
        step_seconds=step_timeout_seconds,
    )
    return Job(run, group, limits)


class Limits(NamedTuple):
    """The time limits of a job."""

    form: timedelta
    collective: timedelta
    step_seconds: float


class Place(NamedTuple):
    """Where a process is, from the variables of its launcher."""

    name: str | None
    topology: str | None
    node_index: int | None


def _place(environment: Any, host: str) -> Place:
    """Returns the place of this process. Pure."""
    local = environment.get(_LOCAL_RANK, "")
    if not local.isdecimal():
        return Place(None, None, None)
    size = environment.get(_LOCAL_SIZE, "")
    machine = environment.get("GROUP_RANK", "")
    index = int(local)
    if machine.isdecimal() and size.isdecimal():
        index += int(machine) * int(size)
    return Place(f"{host}/{local}", host, index)


class Failures:
    """Counts failures of the group that no loss explains."""

    def __init__(self) -> None:
        self._step = -1
        self._count = 0

    def repeats(self, step: int) -> bool:
        """Counts one that came after this step. Returns whether the same has happened too often."""
        self._count = self._count + 1 if step == self._step else 1
        self._step = step
        return self._count >= MOST_FAILURES


class _Kept(NamedTuple):
    """A dropped group, whose parts must live until its collectives have ended."""

    parts: list[object]
    interrupt: Interrupt


class Job:
    """The part of one process in an elastic job. `join` returns it. Use it in a `with` block, whose end leaves the run."""

    def __init__(self, run: _run.Run, backend: Backend, limits: Limits) -> None:
        self._plain = run
        self._backend = backend
        self._limits = limits
        self._kept: list[_Kept] = []
        # Of the last world.
        self._size = 0
        self._failures = Failures()
        self._pid = os.getpid()
        self._stop_requested = False
        self._in_step = False
        self._earlier_handler: Any = None

    @property
    def rendezvous(self) -> _run.Run:
        """The run, for its store, its state and its id. Do not call its `next_world`."""
        return self._plain

    def run(
        self,
        state: State,
        train: Callable[[World, B], object],
        *,
        build: Callable[[World], B],
        on_equal: Callable[[World], object] | None = None,
    ) -> None:
        """Trains until the training function returns on all members, and closes the run as succeeded.

        Calls `build` and `train` anew in each world. Before, the default process group of torch is formed, and the state is
        made equal on all members. Returns without a call if the run has succeeded without this process.

        On SIGTERM, the process completes its step, leaves, and ends with status 143; the other members continue. A second
        SIGTERM ends it at once. This needs the main thread and the default handler of SIGTERM.

        Args:
            state: Model, optimizer, and progress of this process.
            train: Trains until it is done. It calls `World.begin_step` where the world may end, and `State.advance` after
                each `optimizer.step()`. It begins at the progress of the state, which includes the steps of earlier worlds.
            build: Makes what `train` needs of this world, such as `world.ddp(model)`, further groups, and meshes. `train` gets
                its result.
            on_equal: Called in each world after the states are equal, for example to log `state.digest()`.

        Raises:
            StateLost: No member has a valid state. Load a checkpoint, call `State.restored`, and then `run` again.
            ClosedError: The run was closed without success.
            JoinTimeoutError: No first world included this process within `join_timeout`. The message says what was missing. For
                later worlds there is no limit, because the processes that are left have the state.
            UnreachableError: The rendezvous service does not respond any more.
            RuntimeError: What `build` or `train` raised, unless the world has ended. Also an error of the process group that
                repeats five times in a row without a loss and without a step. Every other exception is raised at once.
        """
        self._follow_signals()
        state._on_advance = self._plain.report_resumed
        limit_seconds: float | None = None
        try:
            while True:
                try:
                    world = self._plain.next_world(timeout_seconds=limit_seconds)
                except ClosedError as error:
                    if error.outcome == "succeeded":
                        return
                    raise
                limit_seconds = math.inf
                if world.size < self._size:
                    # What failed before was a loss.
                    self._failures = Failures()
                self._size = world.size
                if self._train_in(world, state, train, build, on_equal):
                    return
        except Stopped:
            self._leave_after_signal()
        finally:
            # The state may live longer than the run, which leaves when nothing refers to it any more.
            state._on_advance = None
            self._restore_signals()

    def leave(self, *, timeout_seconds: float | None = None) -> bool:
        """Leaves the run. The other members continue. Idempotent.

        Args:
            timeout_seconds: Time limit. Default: `close_timeout` (30 s).

        Returns:
            Whether the service acknowledged the departure.
        """
        return self._plain.leave(timeout_seconds=timeout_seconds)

    def _train_in(
        self,
        world: plain.World,
        state: State,
        train: Callable[[World, B], object],
        build: Callable[[World], B],
        on_equal: Callable[[World], object] | None,
    ) -> bool:
        """Trains in one world. Returns whether the training is done."""
        self._forget_kept()
        interrupt = Interrupt(self._plain, world, limit_seconds=self._limits.step_seconds)
        group = self._backend.new_group()
        interrupt.start(group)
        returned = False
        self._in_step = True
        try:
            self._form(group, world, interrupt)
            equalize(state, interrupt)
            seen = World(world, interrupt, form_timeout=self._limits.form, stopping=lambda: self._stop_requested)
            built = build(seen)
            interrupt.check()
            group.formed(self._limits.collective)
            if on_equal is not None:
                on_equal(seen)
            train(seen, built)
            returned = True
            self._wait_for_all(interrupt)
            return self._finish()
        except WorldChanged as error:
            change = error.change
        except RuntimeError as error:
            change = self._explain(error, interrupt, world, state)
        finally:
            self._in_step = False
            interrupt.close()
            self._kept.append(_Kept(group.drop(), interrupt))
            state.discard_step()
        # Out of the `except`, because the exception keeps the frames of `train`, and with them the old group.
        if self._stop_requested:
            raise Stopped
        if returned and self._has_succeeded():
            return self._finish()
        logger.info("round %d has ended at step %d: %s", world.round, state.step, describe(change))
        interrupt.end_world(change.why)
        return False

    def _form(self, group: Group, world: plain.World, interrupt: Interrupt) -> None:
        store = WorldStore(world, self._plain._node, interrupt)
        store.set_timeout(self._limits.form)
        began = time.monotonic()
        # The limit of collectives before torch 2.9. A collective must fail before this process ends itself, after `step_seconds`.
        pause = timedelta(seconds=self._limits.step_seconds / 2)
        group.form(store, rank=world.rank, size=world.size, timeout=self._limits.form, pause=pause)
        interrupt.check()
        logger.info(
            "round %d: formed a group of %d in %.0f ms, this process has rank %d (%s)",
            world.round, world.size, (time.monotonic() - began) * 1000, world.rank, world.why,
        )  # fmt: skip

    def _explain(self, error: RuntimeError, interrupt: Interrupt, world: plain.World, state: State) -> _core.Change:
        """Returns the change that an error of torch is about. Raises the error if it is about the program.

        This is the one place where a broken connection becomes evidence of a death.
        """
        fired = interrupt.fired
        if fired is not None:
            return fired
        if not self._backend.is_group_failure(error) or self._failures.repeats(state.step):
            raise error
        logger.warning("round %d: a collective failed, and no loss is known yet: %s", world.round, error)
        # The lost member may not be known yet. This process requests the next round, which announces the change.
        return _core.Change(world.round, "seeking", f"a collective failed: {str(error).splitlines()[0][:200]}", [])

    def _wait_for_all(self, interrupt: Interrupt) -> None:
        """Waits until the training function has returned on all members."""
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        assert work is not None, "an asynchronous collective of a member returns its work"
        interrupt.wait(work)

    def _has_succeeded(self) -> bool:
        closed = self._plain.closed
        return closed is not None and closed.outcome == "succeeded"

    def _finish(self) -> bool:
        self._plain.close("succeeded")
        return True

    def _forget_kept(self) -> None:
        """Drops groups of earlier worlds whose collectives have ended."""
        self._kept = [kept for kept in self._kept if kept.interrupt.stuck()]

    def _release(self) -> None:
        """Drops all groups. Those with a collective that has not ended are never freed, because that would wait for it."""
        self._forget_kept()
        for kept in self._kept:
            for part in kept.parts:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        self._kept = []

    def _follow_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, self._on_signal):
            self._earlier_handler = signal.signal(signal.SIGTERM, self._on_signal)

    def _restore_signals(self) -> None:
        if self._earlier_handler is not None:
            signal.signal(signal.SIGTERM, self._earlier_handler)
            self._earlier_handler = None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked child has this handler, too, but no step to complete.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._stop_requested or not self._in_step:
            raise SystemExit(128 + number)
        self._stop_requested = True

    def _leave_after_signal(self) -> None:
        logger.info("leaving the run after SIGTERM")
        self._plain.leave()
        raise SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._plain.__exit__(kind, error, traceback)
        finally:
            self._release()
