"""The membership of one node in a run: the node, the socket that it offers, its signals, and its departure.

Problem: a program can drop its `Run` or its handler without leaving, for example because of an exception that it catches,
a notebook cell that runs twice, or an agent that ends by a signal. The node would stay a member forever. Design: `Run` and
torch's handler each own one `Membership`, and nothing else refers to it, so that its finalizer runs when the owner is
dropped. The finalizer releases the socket and lets the node leave in the background. In a forked child, it does not affect
the parent's node.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from lattice_rdzv import _core, _logs, _process
from lattice_rdzv.errors import RendezvousError

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

logger = logging.getLogger("lattice_rdzv")


class _Parts:
    """The state that the finalizer needs, without a reference to the membership."""

    def __init__(self) -> None:
        self.node: _core.Node | None = None
        # The port is kept, too, because another thread may have closed the socket, which then does not know it.
        self.listener: tuple[socket.socket, int] | None = None
        # The socket of the present world, which the program may take.
        self.held: socket.socket | None = None
        _all_parts.add(self)

    def release_held_port(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            # Has no effect if the program has taken it.
            held.close()

    def release_port(self) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            listener[0].close()
        self.release_held_port()

    def abandon(self, membership: int) -> None:
        self.release_port()
        if self.node is not None:
            self.node.abandon()
        _uninstall_signals(membership)


# A forked child must not keep the ports of its parent in use.
_all_parts: weakref.WeakSet[_Parts] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for parts in list(_all_parts):
        parts.release_port()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Membership:
    """One node's part in a run, from the socket that it offers until it has left."""

    def __init__(self, settings: _core.Settings) -> None:
        self._settings = settings
        self._process = _core.process_identity()
        self._parts = _Parts()
        finalizer = weakref.finalize(self, self._parts.abandon, id(self))
        # At exit, the process's exit hook does this, with a time limit.
        finalizer.atexit = False

    @property
    def node(self) -> _core.Node | None:
        """The node, or `None` before it has joined."""
        return self._parts.node

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which has no part in its parent's run."""
        return _core.process_identity() == self._process

    def join(self) -> _core.Node:
        """Joins the run, and offers a port meanwhile."""
        with self.joining() as call:
            return self.joined(call.wait())

    @contextmanager
    def joining(self) -> Iterator[_core.Call[_core.Node]]:
        """Offers a port, and yields the call that joins the run."""
        try:
            yield _process.join(self._settings, port=self.offer_port())
        except BaseException:
            self.release_port()
            raise

    def joined(self, node: _core.Node) -> _core.Node:
        """Keeps the node that joined, and returns it."""
        self._parts.node = node
        _logs.note_origin(run=self._settings.run_id, node=self._settings.node_name, round=None)
        return node

    def offer_port(self, *, hold: bool = False) -> int:
        """Binds the socket on which this node would serve as master, unless it is bound, and returns its port. It stays
        bound until `release_port`, `hold_port` or `take_listener`, because a world may form with this port at any time.

        Args:
            hold: Whether to bind a fixed port, too.

        Raises:
            OSError: No port could be bound.
        """
        if self._settings.port is not None and not hold:
            # Only the node that becomes rank 0 needs a fixed port, and binds it then.
            return self._settings.port
        from lattice_rdzv import _listen

        offered = self._parts.listener
        if offered is None:
            listener = _listen.listen(self._settings.port, self._settings.port_range)
            self._parts.listener = offered = listener, int(listener.getsockname()[1])
        return offered[1]

    def release_port(self) -> None:
        """Closes the socket, so that the program can bind its port."""
        self._parts.release_port()

    def hold_port(self, port: int | None) -> socket.socket | None:
        """Keeps the offered socket for the world that was returned if it is bound to this port, and returns it. Otherwise
        closes it."""
        offered, self._parts.listener = self._parts.listener, None
        if offered is None:
            return None
        if offered[1] != port:
            offered[0].close()
            return None
        self._parts.held = offered[0]
        return offered[0]

    def release_held_port(self) -> None:
        """Closes the socket of the last world, unless the program has taken it."""
        self._parts.release_held_port()

    def take_listener(self) -> socket.socket | None:
        """Returns the bound socket, which the caller then owns."""
        listener, self._parts.listener = self._parts.listener, None
        return None if listener is None else listener[0]

    def handle_signals(self, numbers: Iterable[int], action: Callable[[int], None]) -> None:
        """Makes these signals call `action` if they have their default disposition. Works only in the main thread."""
        from lattice_rdzv import _signals

        if self.is_of_this_process:
            _signals.install(self, numbers, action)

    def announce_signals(self, numbers: Collection[int]) -> None:
        """Notifies the peers when one of the signals arrives. Works only in the main thread."""
        from lattice_rdzv import _signals

        if self.is_of_this_process and self._parts.node is not None:
            _signals.announce(self, self._parts.node, numbers)

    def end(self, leave: Callable[[_core.Node], _core.Call[bool]]) -> bool:
        """Closes the socket and ends this part by `leave`. Returns false without a node, and in a forked child."""
        if not self.is_of_this_process:
            return False
        left = False
        with self.ending() as node:
            if node is not None:
                left = leave(node).wait()
        return left

    @contextmanager
    def ending(self) -> Iterator[_core.Node | None]:
        """Closes the socket, yields the node, and restores the signals afterwards."""
        self.release_port()
        try:
            yield self._parts.node
        except RendezvousError as error:
            # Leaving fails only because of the exit of the interpreter. The lease then expires.
            logger.debug("run `%s` was not left: %s", self._settings.run_id, error)
        finally:
            self.release()

    def release(self) -> None:
        """Closes the socket, and restores the signals."""
        self.release_port()
        _uninstall_signals(id(self))


def _uninstall_signals(membership: int) -> None:
    from lattice_rdzv import _signals

    _signals.uninstall(membership)
