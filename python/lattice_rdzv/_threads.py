"""Provides threads and locks of the operating system, also if a library has replaced those of Python.

Problem: after `gevent.monkey.patch_all()`, a new thread is a coroutine of the thread that starts it. The log thread waits
inside the core, so as a coroutine it would block all other coroutines forever. Design: use the original functions from
gevent, and raise an error if another library has replaced them.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from typing import Any

_Builtin = type(len)


def start(function: Callable[[], None]) -> None:
    """Starts a daemon thread.

    Raises:
        RendezvousError: The system cannot start another thread, or a library has replaced Python's threads.
    """
    from lattice_rdzv.errors import RendezvousError

    try:
        _original("start_new_thread")(function, ())
    except RuntimeError as error:
        raise RendezvousError(
            f"cannot start a thread: {error}; raise the limit of processes (`ulimit -u`, or `pids.max` of the container)"
        ) from None


class Gate:
    """A gate that lets one thread pass after another thread has opened it."""

    def __init__(self) -> None:
        self._lock = _original("allocate_lock")()
        self._lock.acquire()

    def open(self) -> None:
        """Lets the other thread pass."""
        self._lock.release()

    def wait(self, timeout_seconds: float) -> bool:
        """Waits until the gate is open. Returns false if the time limit expires first."""
        return bool(self._lock.acquire(timeout=timeout_seconds))


def _original(name: str) -> Any:
    found = getattr(_thread, name)
    if isinstance(found, _Builtin):
        return found
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("_thread"):
        return gevent.get_original("_thread", name)
    from lattice_rdzv.errors import RendezvousError

    raise RendezvousError(
        "lattice_rdzv needs threads of the operating system, but this program has replaced `_thread`; exclude threads from "
        f"the patch (for eventlet: `eventlet.monkey_patch(thread=False)`); replaced by: `{found.__module__}`"
    )
