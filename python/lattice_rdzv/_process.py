"""What this process has joined and serves, so that it leaves and stops once, at exit, and only where it began.

Problem: a node that goes without a word costs its peers a lease's time. Choice: every joined node is kept here until it
left, and every server until it stopped; the interpreter's exit lets the rest leave, then stops the servers, which a node
may need to leave, within a bound. Nothing hangs on `__del__`, whose moment nobody chooses, and a forked child starts
with empty lists: its parent's membership is not its own.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable

from lattice_rdzv import _core

# Leaving at exit is a courtesy to the peers: a service that does not answer may not hold up the exit for longer.
LEAVE_AT_EXIT_SECONDS = 3.0

_lock = threading.Lock()
_joined: dict[int, _core.Node] = {}
_serving: dict[int, _core.Server] = {}
_hooked = False

# Called at exit before anything ends; what they give up leads into the core.
before_end: list[Callable[[], None]] = []


def join(settings: _core.Settings, *, port: int) -> _core.Node:
    """Joins, and remembers the node. The first time it starts the logs, so that a join that waits can say so, and
    registers the exit hook, so that an exit ends a join that is pending in another thread."""
    _begin()
    node = _core.Node.join(settings, port=port)
    with _lock:
        _joined[id(node)] = node
    return node


def serve(start: Callable[[], _core.Server]) -> _core.Server:
    """Starts a server, and remembers it."""
    _begin()
    server = start()
    with _lock:
        _serving[id(server)] = server
    return server


def stopped(server: _core.Server) -> None:
    """Forgets a server that has stopped."""
    with _lock:
        _serving.pop(id(server), None)


def _begin() -> None:
    from lattice_rdzv import _logs

    global _hooked
    with _lock:
        if not _hooked:
            _hooked = True
            atexit.register(_at_exit, os.getpid())
            os.register_at_fork(after_in_child=_after_fork_in_child)
    _logs.start()


def left(node: _core.Node) -> None:
    """Forgets a node that has left by itself."""
    with _lock:
        _joined.pop(id(node), None)


def _after_fork_in_child() -> None:
    global _lock, _hooked
    # Another thread of the parent may have held the lock at the moment of the fork.
    _lock = threading.Lock()
    _joined.clear()
    _serving.clear()
    # The parent's hook is inherited and sees by its pid that it is not meant; a child that joins registers its own.
    _hooked = False


def _at_exit(pid: int) -> None:
    if os.getpid() != pid:
        return
    from lattice_rdzv import _logs

    for call in before_end:
        call()
    deadline = time.monotonic() + LEAVE_AT_EXIT_SECONDS
    with _lock:
        nodes, servers = list(_joined.values()), list(_serving.values())
        _joined.clear()
        _serving.clear()
    # Or leaving would end what daemon threads wait for, and each would print a traceback.
    _core.end_calls()
    for node in nodes:
        node.leave(timeout_seconds=max(0.1, deadline - time.monotonic()))
    for server in servers:
        server.stop()
    _logs.stop(_core.shutdown)
