"""`World`: the nodes of a completed round, as a value.

Its fields can be compared, hashed and pickled. The store and the members are those of a node, so they are available only
in the process that joined.
"""

from __future__ import annotations

from lattice_rdzv._store import Store
from lattice_rdzv.errors import LeftError, RendezvousError

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, TypeVar

    from lattice_rdzv import _core
    from lattice_rdzv._core import Member

    W = TypeVar("W", bound="WorldFacts")


class WorldFacts:
    """What `World` and `aio.World` have in common: the fields."""

    __slots__ = ("_fields", "_listener", "_native")

    def __init__(
        self,
        run_id: str,
        life: str,
        round: int,  # noqa: A002
        rank: int,
        size: int,
        master_address: str,
        master_port: int,
        why: str,
    ) -> None:
        self._fields = (run_id, life, round, rank, size, master_address, master_port, why)
        self._native: _core.World | None = None
        # The membership owns it, and closes it.
        self._listener: socket.socket | None = None

    @classmethod
    def _of(cls: type[W], native: _core.World) -> W:
        """The world that the core returned."""
        world = cls(*native.fields())
        world._native = native
        return world

    @property
    def _core(self) -> _core.World:
        if self._native is None:
            raise LeftError(
                "this world is a copy of another process's, so it has no store and no members; use those of the "
                f"process that joined: {self!r}"
            )
        return self._native

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self._fields[0]

    @property
    def life(self) -> str:
        """Random name of the job under this run id: a job that uses the run id later has another one."""
        return self._fields[1]

    @property
    def round(self) -> int:
        """Number of the round, which increases with each world of the run."""
        return self._fields[2]

    @property
    def rank(self) -> int:
        """Rank of this node, from 0 to `size - 1`."""
        return self._fields[3]

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self._fields[4]

    @property
    def master_address(self) -> str:
        """Address of the node with rank 0, as its peers reach it."""
        return self._fields[5]

    @property
    def master_port(self) -> int:
        """Port that the node with rank 0 has offered for this world."""
        return self._fields[6]

    @property
    def why(self) -> str:
        """Reason why the round was formed."""
        return self._fields[7]

    def master_socket(self) -> socket.socket:
        """Returns the socket that is bound to `master_port` and listens on it, for the program that serves as master.

        Only the node with rank 0 has it, and only if `next_world` was called with `hold_port=True`. The caller owns the
        socket and closes it. Connections that arrive before the first `accept` wait. Programs that this process starts do
        not inherit it, but a child that is forked afterwards does.

        Raises:
            RendezvousError: This node does not hold the port, or the socket was already taken or closed.
        """
        import socket

        descriptor = -1 if self._listener is None else self._listener.detach()
        if descriptor == -1:
            raise RendezvousError(
                f"no socket is held for port {self.master_port} of {self!r}: only rank 0 holds one, and only if "
                "`next_world` was called with `hold_port=True`; it is released when it is taken, by the next call of "
                "`next_world`, and when this node leaves"
            )
        return socket.socket(fileno=descriptor)

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields)

    def __reduce__(self) -> tuple[type[Any], tuple[Any, ...]]:
        return type(self), self._fields

    def __repr__(self) -> str:
        return f"<{type(self).__name__} run_id={self.run_id!r} round={self.round} rank={self.rank} size={self.size}>"


class World(WorldFacts):
    """The nodes of a completed round, as one of them sees it. A value: it can be compared, hashed and pickled.

    A copy in another process, by pickle or by a fork, has the fields, but neither `store` nor `members`.
    """

    __slots__ = ()

    @property
    def store(self) -> Store:
        """Key-value space of this round. A call that is pending when the rendezvous service loses its data raises
        `StoreResetError`."""
        return Store(self._core.store)

    def members(self, *, timeout_seconds: float | None = 30.0) -> list[Member]:
        """Reads all members from the rendezvous service, in the order of their ranks."""
        return self._core.members(timeout_seconds=timeout_seconds).wait()
