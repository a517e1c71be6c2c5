"""`join` and `Run`: how a program joins a run, waits for worlds, and leaves.

This module converts arguments to settings and forwards to the core's `Node`. `_membership` owns the node, its socket, and
its signals.
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
    from lattice_rdzv.types import JoinSettings, Suspicion

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
    """Joins a run. `Run.next_world` then waits for the first world that includes this node.

    Args:
        run_id: Name of the run, equal on all of its nodes. Default: `LATTICE_RDZV_ID`.
        nnodes: Number of nodes: `2`, or `"2:4"` or `(2, 4)` for at least 2 and at most 4. Default: `LATTICE_NNODES`.
        endpoint: Address of the rendezvous service, `host:port`, or several as a list or separated by commas. If it is one
            address with another port than 2379, and no server responds there, the node with this address hosts the
            embedded server; `is_host` overrides this. Default: `LATTICE_RDZV_ENDPOINTS`, the variables of a Kubernetes
            Service, or its DNS name; outside a cluster `localhost:2379`, or hosted at `localhost:29400`.
        node_name: Name of this node, by which it gets its rank again. Default: `LATTICE_RDZV_NODE_NAME`, else the name of
            the host.
        local_address: Address at which the other nodes reach this node. Default: `POD_IP`, else the local address of the
            connection to the service.
        port: Port on which this node serves if it becomes rank 0. Only rank 0 binds it. Default: a free port.
        topology: Label of the node's location, such as a rack. Nodes with equal labels get adjacent ranks. Default:
            `LATTICE_RDZV_TOPOLOGY`.
        tenant: Separates the runs of several users of one service. Default: `LATTICE_RDZV_TENANT`, else `default`.
        submission: Distinguishes this start of a job from the next one with the same run id. Default:
            `LATTICE_RDZV_SUBMISSION`.
        settings: Other settings by their names in `--rdzv-conf`, such as `lease_ttl=5` (seconds), `node_index=0` or
            `sizes=[2, 4, 8]`.

    Returns:
        This node's part in the run. Use it in a `with` block, whose end leaves the run.

    Raises:
        SettingsError: A setting is wrong, missing or unknown, or differs from that of the run.
        UnreachableError: The service was not found, or did not respond within `connect_timeout` (30 s).
        ClosedError: The run is closed.
        RecordError: An incompatible version wrote a record of the run.
        OSError: No port could be bound.
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
    """Returns the settings from the arguments of `join` and the environment.

    Raises:
        SettingsError: A setting is wrong, missing or unknown.
    """
    # At the top of the module, this would double the time of importing this package.
    import socket

    arguments = {
        "run_id": run_id,
        "endpoint": endpoint if endpoint is None or isinstance(endpoint, str) else ",".join(endpoint),
        "local_addr": local_address,
        "nnodes": nnodes,
        **settings,
    }
    passed = {name: as_text(value) for name, value in arguments.items() if value is not None}
    passed["host_name"] = socket.gethostname()
    # A dictionary: the core must not execute Python code, as the methods of `os.environ` are, in a daemon thread.
    return _core.Settings(passed, dict(os.environ), origin="argument")


def as_text(value: object) -> str:
    """Returns the text of a setting, as the core reads it. A truth value becomes `1` or `0`, and a sequence a list
    with colons.
    """
    if isinstance(value, (list, tuple, range)):
        return ":".join(as_text(part) for part in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def end_program(number: int) -> None:
    """Ends the program because of a signal, with the status that a shell reports."""
    raise SystemExit(128 + number)


class Part:
    """The methods of `Run` and `aio.Run` that do not wait."""

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
        """Returns the time limit for leaving at the end of a `with` block, in seconds. After an exception it is at most 3 s,
        so that the exception is not delayed by a service that does not respond."""
        limit = self._settings.close_timeout_seconds
        return limit if error is None else min(limit, _process.LEAVE_AT_EXIT_SECONDS)

    @property
    def changing(self) -> bool:
        """Whether the world that was returned last is about to be replaced, or the run was closed without success. Sends
        no request."""
        return self._node.num_nodes_waiting() > 0

    @property
    def change(self) -> _core.Change | None:
        """Reason why the world that was returned last is about to be replaced, or `None`."""
        return self._node.change

    @property
    def closed(self) -> _core.Closed | None:
        """Outcome of the run, or `None` while it is open as far as this node knows."""
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
        """State of this node. `uncertain` means that its lease may have expired, because the service does not respond."""
        return self._node.state

    def report_resumed(self) -> None:
        """Reports that the program trains in the world that was returned last, so that `lattice-rdzv timeline` shows how long
        training stood still. Call it after the first step in a world; later calls in the same world do nothing.

        Returns at once. Rank 0 writes one small record in the background, and gives up if the service is away for 30 s. The
        call does nothing on the other ranks, and before the first world.

        Raises:
            LeftError: The node belongs to the process from which this one was forked.
        """
        self._node.report_resumed()

    def _follow_signals(self) -> None:
        """Makes SIGTERM end the program by an exception, and notifies the peers at once. Does nothing if the application
        handles SIGTERM itself, and outside the main thread."""
        if not self._settings.leave_on_signal:
            return
        import signal

        from lattice_rdzv import _signals

        self._membership.handle_signals([signal.SIGTERM], self._on_signal)
        ends = signal.getsignal(signal.SIGTERM) is _signals.handle
        self._membership.announce_signals([signal.SIGTERM] if ends else [])

    def __repr__(self) -> str:
        what = f"<{type(self).__name__} {self._settings.run_id!r}"
        if self._membership.node is None:
            return f"{what} that has not joined>"
        if not self._membership.is_of_this_process:
            return f"{what} of the process from which this one was forked>"
        return f"{what} node={self.name!r} state={self.state!r} endpoint={self.endpoint!r}>"


def verdict(answer: tuple[str, str]) -> Suspicion:
    """Returns the verdict about a suspect. Raises a `ValueError` if there is no such member. Pure."""
    word, detail = answer
    if word == "void":
        raise ValueError(f"cannot suspect this member: {detail}")
    return word  # type: ignore[return-value] # the core has these words


class Run(Part):
    """The part of one node in a run. `join` returns it. `for world in run` yields its worlds.

    Use it in a `with` block, whose end leaves the run, within 3 s if an exception ends the block. The node also leaves when
    the last reference to its `Run` is dropped, even if one of its worlds is still in use.

    A node acts only in the process that joined. In a forked child, `leave` and `close` do nothing and return false,
    `changing` is false, and everything else raises `LeftError`.
    """

    def __init__(self, settings: _core.Settings) -> None:
        super().__init__(settings)
        self._membership.join()
        self._follow_signals()

    def next_world(
        self, *, port: int | None = None, hold_port: bool = False, timeout_seconds: float | None = None
    ) -> World:
        """Waits for the next world that includes this node and was not returned yet.

        A call while a world runs ends this node's part in that world, and requests the next one. Make it after a change.

        Args:
            port: Port on which this node serves if it has rank 0, for a program that has bound the port itself. Default:
                the setting `port`, which is not bound, or a free port, which is bound until the call returns.
            hold_port: Whether the port, also that of the setting, stays bound if this node has rank 0, so that no other
                program can take it before `World.master_socket` returns the bound socket. The socket is closed by the
                next call of `next_world`, by `leave` and `close`, and when this `Run` is dropped, unless it was taken.
            timeout_seconds: Time limit. Default: `join_timeout` (600 s) for the first world; `spare_timeout`, which is
                unlimited by default, while this node is a spare because the world has `max_nodes` nodes.

        Raises:
            JoinTimeoutError: No world included this node within the time limit.
            ClosedError: The run is closed.
            UnreachableError: The service does not respond any more.
            LeftError: This node has left.
            OSError: No port could be bound.
            ValueError: `port` and `hold_port` were both passed.
        """
        return self._enter(World, self._seek(port, hold_port, timeout_seconds).wait(), hold_port)

    def __iter__(self) -> Iterator[World]:
        """Yields each world that includes this node, as `next_world` returns it.

        The iteration ends when the run is closed as succeeded. All other errors of `next_world` are raised.
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
        """Waits until the world that was returned last is about to be replaced.

        Args:
            timeout_seconds: Time limit. Default: unlimited.

        Returns:
            The change, or `None` if the limit has passed, or if no change can follow because the run succeeded or this node
            left.
        """
        return self._node.wait_change(timeout_seconds=timeout_seconds).wait()

    def suspect(self, rank: int, why: str = "", *, timeout_seconds: float = 5.0) -> Suspicion:
        """Reports that a connection of this program to another member is broken, and waits for the verdict.

        The coordinator connects to that member. If the address at which it greeted before refuses the connection, its death is
        reported at once, as by a lifeline. Otherwise nothing changes until the member's lease expires.

        Args:
            rank: Rank of the member in the world that was returned last.
            why: What the program saw, such as the error of its collective. The evidence of the loss contains it.
            timeout_seconds: Time limit for the verdict.

        Returns:
            `lost` if the member is dead, `gone` if it has left, `alive` if it has greeted, `unknown` if its address does not show
            its state, and `unanswered` if the coordinator has not responded in time.

        Raises:
            ValueError: The world has no such rank, or this node is in no world.
            UnreachableError: The service does not respond.
            LeftError: This node has left.
        """
        return verdict(self._node.suspect(rank, why=why, timeout_seconds=timeout_seconds).wait())

    @property
    def store(self) -> Store:
        """Key-value store of the whole run. `World.store` is the store of one round.

        Its calls wait until the run has begun, within their time limits.
        """
        return Store(self._node.store())

    def leave(self, *, timeout_seconds: float | None = None) -> bool:
        """Leaves the run. The other nodes continue. Idempotent; does not raise if the service fails.

        Args:
            timeout_seconds: Time limit. Default: `close_timeout` (30 s).

        Returns:
            Whether the service acknowledged the departure.
        """
        return self._membership.end(lambda node: node.leave(timeout_seconds=timeout_seconds))

    def close(
        self,
        outcome: Literal["succeeded", "failed", "ended"] = "succeeded",
        *,
        why: str = "",
        timeout_seconds: float | None = None,
    ) -> bool:
        """Closes the run for all nodes, which is final, and then leaves. Does not raise if the service fails.

        Args:
            outcome: Outcome of the run. Every later `next_world` of the other nodes raises `ClosedError` with it.
            why: Reason, for the messages of the other nodes.
            timeout_seconds: Time limit. Default: `close_timeout` (30 s).

        Returns:
            Whether the run is closed, by this node or another one.
        """
        return self._membership.end(lambda node: node.close(outcome, why=why, timeout_seconds=timeout_seconds))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave(timeout_seconds=self._leave_limit(kind))
