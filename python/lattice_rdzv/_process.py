"""What this process does once: it starts the logs, and at its exit its nodes leave and its servers stop.

Problem: a node that disappears without a message costs its peers a lease TTL. Choice: one exit hook. The core knows the
nodes of this process without keeping them alive, and this module knows its servers. The hook ends the calls of other
threads, lets the nodes leave, then stops the servers, which a node may need to leave, and stops the runtime, all within
bounds. It takes no lock: an exception that a signal handler raised could have left one locked.

A child of `multiprocessing` ends by `os._exit`, which skips exit hooks, so the hook is also registered there. A forked
child starts with nothing: its parent's nodes and servers are not its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

from lattice_rdzv import _core

# Leaving is a courtesy to the peers, so a service that does not answer may delay the exit by this much only.
LEAVE_AT_EXIT_SECONDS = 3.0
LEAVE_AFTER_SIGNAL_SECONDS = 0.5

# After the finalizers of the application, which have a priority of at least 0.
_MULTIPROCESSING_PRIORITY = -100

# Each operation on them is one bytecode of the interpreter, so they need no lock.
_serving: dict[int, _core.Server] = {}
# The processes that have the hook, by their identity: a pid can repeat in a new pid namespace.
_hooked: set[tuple[int, int]] = set()


def join(settings: _core.Settings, *, port: int) -> _core.Node:
    """Joins a run. The first call of a process starts the logs, because a join that waits logs why, and registers the
    exit hook, because an exit must end a join that is pending in another thread."""
    _begin()
    return _core.Node.join(settings, port=port)


def serve(start: Callable[[], _core.Server]) -> _core.Server:
    """Starts a server, and stops it at exit."""
    _begin()
    server = start()
    _serving[id(server)] = server
    return server


def stopped(server: _core.Server) -> None:
    """Forgets a server that has stopped."""
    _serving.pop(id(server), None)


def _begin() -> None:
    from lattice_rdzv import _logs

    identity = _core.process_identity()
    if identity not in _hooked:
        # If two threads do this at the same time, the hook is registered twice, and the second call finds nothing to do.
        if not _hooked:
            os.register_at_fork(after_in_child=_serving.clear)
        atexit.register(_at_exit, identity)
        _hook_multiprocessing(identity)
        _hooked.add(identity)
    _logs.start()


def _hook_multiprocessing(identity: tuple[int, int]) -> None:
    # A child of `multiprocessing` has loaded it. In its parent, and where it is not loaded, `atexit` does.
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    from multiprocessing import util

    util.Finalize(None, _at_exit_of_multiprocessing, args=(identity,), exitpriority=_MULTIPROCESSING_PRIORITY)


def _at_exit_of_multiprocessing(identity: tuple[int, int]) -> None:
    # `multiprocessing` calls its finalizers before it waits for the threads of the child, which may still use a run.
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    _at_exit(identity)


def _at_exit(identity: tuple[int, int]) -> None:
    if _core.process_identity() != identity:
        return
    from lattice_rdzv import _logs, _signals

    try:
        _signals.release()
        # Leaving would end what daemon threads wait for, and each would print a traceback.
        _core.end_calls()
        try:
            _core.leave_all(timeout_seconds=LEAVE_AT_EXIT_SECONDS)
        except BaseException:
            # A signal, such as a second Ctrl-C, shortens leaving, but does not prevent it.
            _core.leave_all(timeout_seconds=LEAVE_AFTER_SIGNAL_SECONDS)
            raise
        while _serving:
            _, server = _serving.popitem()
            server.stop()
    finally:
        _logs.stop(_core.shutdown)
