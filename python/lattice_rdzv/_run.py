"""One node's part in a run, as a program uses it: join, take worlds, leave.

Thin over the core's `Node`: it fills in what was not passed, keeps the port that this node offers, and knows that
leaving is something a process does once.
"""

from __future__ import annotations

import os

from lattice_rdzv import _core, _process
from lattice_rdzv._membership import Membership
from lattice_rdzv._store import Store
from lattice_rdzv._world import World
from lattice_rdzv.errors import ClosedError

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Literal, TypeVar

    from typing_extensions import Unpack

    from lattice_rdzv._world import WorldFacts
    from lattice_rdzv.types import JoinSettings

    W = TypeVar("W", bound=WorldFacts)


def join(
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
    """Joins a run and returns this node's part in it; `Run.next_world` then waits for a place.

    Args:
        run_id: Which run. Default: `LATTICE_RDZV_ID`.
        nnodes: How many nodes: `2`, `"2:4"` or `(2, 4)` for at least 2 and at most 4. Default: `LATTICE_NNODES`.
        endpoint: Where the service is: `host:port`, several with commas or as a list. If it is one, with another port
            than 2379, the node whose address that is hosts the service there, should nobody serve yet; `is_host` says
            so where the address does not. Default: as found in the environment (`LATTICE_RDZV_ENDPOINTS`, the service's
            variables, its DNS name; outside a cluster `localhost:2379`, or hosted at `localhost:29400`).
        node_name: What this node is called. Default: `LATTICE_RDZV_NODE_NAME`, else the host's name.
        local_address: Where its peers reach it. Default: `POD_IP`, else the address it reaches the service from.
        port: Where it would serve as master, which only the node that becomes rank 0 has to bind. Default: a free one.
        topology: A label such as a rack; nodes of one label get ranks side by side. Default: `LATTICE_RDZV_TOPOLOGY`.
        tenant: Keeps the runs of several users of one service apart. Default: `LATTICE_RDZV_TENANT`, else `default`.
        submission: Tells this submission of a job from the next under the same run id. Default:
            `LATTICE_RDZV_SUBMISSION`.
        settings: Any other setting by its name in `--rdzv-conf`, for example `lease_ttl=5`.

    Raises:
        SettingsError: Something of the above is wrong, missing or unknown, or differs from the run's `nnodes`.
        UnreachableError: No service was found, or it did not answer.
        ClosedError: The run is closed.
        RecordError: The run was written by an incompatible version.
    """
    return Run(
        settings_of(
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


def settings_of(
    run_id: str | None,
    *,
    nnodes: int | str | tuple[int, int] | None = None,
    endpoint: str | Sequence[str] | None = None,
    local_address: str | None = None,
    **settings: object,
) -> _core.Settings:
    """The settings that the arguments of `join` and the environment stand for."""
    # Half of what importing this package would take.
    import socket

    arguments = {
        "run_id": run_id,
        "endpoint": endpoint if endpoint is None or isinstance(endpoint, str) else ",".join(endpoint),
        "local_addr": local_address,
        "nnodes": f"{nnodes[0]}:{nnodes[1]}" if isinstance(nnodes, tuple) else nnodes,
        **settings,
    }
    passed = {name: as_text(value) for name, value in arguments.items() if value is not None}
    passed["host_name"] = socket.gethostname()
    # A dictionary: the core must not execute Python code, as the methods of `os.environ` are, in a daemon thread.
    return _core.Settings(passed, dict(os.environ), origin="argument")


def as_text(value: object) -> str:
    """A setting as the core reads it, which knows `1` and `0` and not how Python spells them."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def end_program(number: int) -> None:
    """Ends the program because of a signal, with the status that a shell reports."""
    raise SystemExit(128 + number)


class Part:
    """What `Run` and `aio.Run` have in common: all that does not wait."""

    _on_signal = staticmethod(end_program)

    def __init__(self, settings: _core.Settings) -> None:
        self._settings = settings
        self._membership = Membership(settings)

    @property
    def _node(self) -> _core.Node:
        node = self._membership.node
        assert node is not None, "a run has joined before anyone gets it"
        return node

    def _seek(self, port: int | None, hold_port: bool, timeout_seconds: float | None) -> _core.Call[_core.World]:
        if port is not None and hold_port:
            raise ValueError(
                f"`port` must not be passed together with `hold_port`, which binds a port, but is `{port}`"
            )
        self._membership.release_held_port()
        if port is None:
            # Held until a world is returned: a world may form with this port after a call that was interrupted.
            port = self._membership.offer_port(hold=hold_port)
        self._follow_signals()
        return self._node.next_world(port=port, timeout_seconds=timeout_seconds)

    def _enter(self, kind: type[W], native: _core.World, hold_port: bool) -> W:
        world = kind._of(native)
        is_master = hold_port and world.rank == 0
        world._listener = self._membership.hold_port(world.master_port if is_master else None)
        return world

    def _leave_limit(self, error: type[BaseException] | None) -> float | None:
        """How long the end of a `with` block may leave: an exception should not wait for a service that is away."""
        limit = self._settings.close_timeout_seconds
        return limit if error is None else min(limit, _process.LEAVE_AT_EXIT_SECONDS)

    @property
    def changing(self) -> bool:
        """Whether the world last returned is about to be replaced, or was closed without success. One atomic read."""
        return self._node.num_nodes_waiting() > 0

    @property
    def change(self) -> _core.Change | None:
        """Why the world last returned is about to be replaced; `None` while it is not."""
        return self._node.change

    @property
    def closed(self) -> _core.Closed | None:
        """How the run was closed; `None` while it is open as far as this node knows."""
        return self._node.closed

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self._node.run_id

    @property
    def name(self) -> str:
        """Name of this node, with `#2` and so on if another node of its world has the same name."""
        return self._node.name

    @property
    def node_id(self) -> str:
        """Random id of this node, which no other node has."""
        return self._node.node_id

    @property
    def endpoint(self) -> str:
        """Endpoint of the rendezvous service that this node uses now."""
        return self._node.endpoint

    @property
    def state(self) -> Literal["joining", "seeking", "spare", "member", "uncertain", "closed", "left"]:
        """Where this node is; `uncertain` says that its lease may be over because the service does not answer."""
        return self._node.state

    def _follow_signals(self) -> None:
        """Has SIGTERM end the program with the `with` block and the exit hook, and the peers told at once. Does nothing
        where the application handles SIGTERM itself, and outside the main thread."""
        if not self._settings.leave_on_signal:
            return
        import signal

        from lattice_rdzv import _signals

        self._membership.handle_signals([signal.SIGTERM], self._on_signal)
        ends = signal.getsignal(signal.SIGTERM) is _signals.handle
        self._membership.tell_signals([signal.SIGTERM] if ends else [])

    def __repr__(self) -> str:
        what = f"<{type(self).__name__} {self._settings.run_id!r}"
        if self._membership.node is None:
            return f"{what} that has not joined>"
        if not self._membership.is_of_this_process:
            return f"{what} of the process from which this one was forked>"
        return f"{what} node={self.name!r} state={self.state!r} endpoint={self.endpoint!r}>"


class Run(Part):
    """A node's part in a run. Made by `join`; use it with `with`, which leaves at the end, within 3 s
    if an exception ends the block. `for world in run` yields its worlds.

    Keep it for as long as this node takes part: the node leaves when its `Run` is dropped, even if a `World` of it is
    still in use.

    A node acts only in the process that joined. In a forked child `leave` and `close` do nothing and return false,
    `changing` is false, and all else raises `LeftError`.
    """

    def __init__(self, settings: _core.Settings) -> None:
        super().__init__(settings)
        self._membership.join()
        self._follow_signals()

    def next_world(
        self, *, port: int | None = None, hold_port: bool = False, timeout_seconds: float | None = None
    ) -> World:
        """Waits for the next world that includes this node and was not returned yet.

        Calling it while a world runs says that this node is done with that world: it is the way to follow a change.

        Args:
            port: Where this node would serve as master of that world, for a program that holds that port itself.
                Default: the setting, which is not held, else a free port, which is held until the call returns.
            hold_port: Whether the port, also that of the setting, stays bound if this node has rank 0, so that no other
                program can take it before `World.master_socket` returns the bound socket. The socket is closed by the
                next call of `next_world`, by `leave` and `close`, and when this `Run` is dropped, unless it was taken.
            timeout_seconds: How long to wait. Default: `join_timeout` (600 s) for a first place; a spare, beyond
                `max_nodes`, waits without limit.

        Raises:
            JoinTimeoutError: There was no place within that time.
            ClosedError: The run is closed.
            UnreachableError: The service is gone.
            LeftError: This node has left.
            OSError: No port could be bound.
            ValueError: `port` and `hold_port` were both passed.
        """
        return self._enter(World, self._seek(port, hold_port, timeout_seconds).wait(), hold_port)

    def __iter__(self) -> Iterator[World]:
        """Yields each world that includes this node, as `next_world` returns it.

        The iteration ends when the run was closed with success. Otherwise it raises what `next_world` raises.
        """
        while True:
            try:
                world = self.next_world()
            except ClosedError as error:
                if error.outcome == "succeeded":
                    return
                raise
            yield world

    def wait_change(self, *, timeout_seconds: float | None = None) -> _core.Change | None:
        """Waits until the world last returned is about to be replaced, and returns why; `None` after the time given, or
        once there can be no change any more, because the run succeeded or this node left.

        Args:
            timeout_seconds: How long to wait. Default: without limit.
        """
        return self._node.wait_change(timeout_seconds=timeout_seconds).wait()

    @property
    def store(self) -> Store:
        """A key-value space of the whole run, which outlives rounds; `World.store` is one of its round.

        Its calls wait until the run has begun, within their time limit.
        """
        return Store(self._node.store())

    def leave(self, *, timeout_seconds: float | None = None) -> bool:
        """Leaves the run; the others go on. Idempotent, and never raises for the service's sake.

        Args:
            timeout_seconds: How long to try. Default: `close_timeout` (30 s).

        Returns:
            Whether the service acknowledged it.
        """
        return self._membership.end(lambda node: node.leave(timeout_seconds=timeout_seconds))

    def close(
        self,
        outcome: Literal["succeeded", "failed", "ended"] = "succeeded",
        *,
        why: str = "",
        timeout_seconds: float | None = None,
    ) -> bool:
        """Closes the run for everyone and for good, then leaves.

        Args:
            outcome: How it ended. After `failed` and `ended` the others' next `next_world` raises `ClosedError`.
            why: What to tell them.
            timeout_seconds: How long to try. Default: `close_timeout` (30 s).

        Returns:
            Whether the run is closed, by whomever.
        """
        return self._membership.end(lambda node: node.close(outcome, why=why, timeout_seconds=timeout_seconds))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave(timeout_seconds=self._leave_limit(kind))
