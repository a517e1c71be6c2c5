"""Performs the actions that a process needs once: it starts the logs, and at exit it lets nodes leave and stops servers.

Problem: if a node disappears without notifying its peers, they wait for a lease TTL. Design: one exit hook. The core
lists the nodes of this process by weak references, and this module lists its servers. The hook ends the calls of other
threads, lets the nodes leave, stops the servers, which a node may need in order to leave, and stops the runtime. Each step
has a time limit. The hook takes no lock, because an exception in a signal handler could have left one locked.

A child of `multiprocessing` ends with `os._exit`, which skips exit hooks, so the hook is also registered there. A forked
child starts without nodes and servers, because those of its parent do not belong to it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

from lattice_rdzv import _core

# Type checkers read it as true, as in `_serve`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Served = TypeVar("_Served", _core.Server, _core.Dashboard)

# Maximum delay of the exit by a service that does not respond. Leaving is optional, because the lease expires anyway.
LEAVE_AT_EXIT_SECONDS = 3.0
LEAVE_AFTER_SIGNAL_SECONDS = 0.5

# Runs after the finalizers of the application, which have a priority of at least 0.
_MULTIPROCESSING_PRIORITY = -100

# Each operation on these collections is one bytecode of the interpreter, so they need no lock.
_serving: dict[int, _core.Server | _core.Dashboard] = {}
# The identities of processes with the hook. A PID can repeat in a new PID namespace.
_hooked: set[tuple[int, int]] = set()
# The functions that the exit hook calls first.
_before_exit: list[Callable[[], None]] = []


def join(settings: _core.Settings, *, port: int) -> _core.Call[_core.Node]:
    """Returns the call that joins a run. The first one of a process starts the logs, because a waiting join logs its reason. It
    also registers the exit hook, because an exit must end a join that is pending in another thread."""
    from lattice_rdzv import _logs

    begin()
    return _core.Node.join(settings, port=port, line_seconds=_logs.line_seconds())


def serving(server: _Served) -> _Served:
    """Stops this server or dashboard at exit."""
    _serving[id(server)] = server
    return server


def stopped(server: _core.Server | _core.Dashboard) -> None:
    """Forgets a server or a dashboard that has stopped."""
    _serving.pop(id(server), None)


def before_exit(call: Callable[[], None]) -> None:
    """Makes the exit hook call this first, while the core still works."""
    _before_exit.append(call)


def begin() -> None:
    """Starts the logs and registers the exit hook, once per process."""
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
    # A child of `multiprocessing` has loaded this module. In its parent, and if it is not loaded, `atexit` is enough.
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
        for call in _before_exit:
            call()
        # Leaving would end the waits of daemon threads, and each would print a traceback.
        _core.end_calls()
        try:
            _core.leave_all(timeout_seconds=LEAVE_AT_EXIT_SECONDS)
        except BaseException:
            # A signal, such as a second Ctrl-C, shortens the time for leaving, but does not prevent it.
            _core.leave_all(timeout_seconds=LEAVE_AFTER_SIGNAL_SECONDS)
            raise
        while _serving:
            _, server = _serving.popitem()
            server.stop().wait()
    finally:
        _logs.stop(_core.shutdown)
