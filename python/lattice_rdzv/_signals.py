"""How the peers of this process's nodes learn of a signal that ends this process.

Problem: by default SIGTERM kills a process before it can tell its peers, and as process 1 of a container it does nothing.
A handler in Python runs only when the main thread executes Python code. Choice: while a node of this process is in a run,
the signals that are at their default disposition raise an exception instead. Python writes each signal's number to a
descriptor of the core, which tells the peers within a millisecond. A handler of the application stays as it is, and the
application's own descriptor still gets every signal.

Only the main thread can set a handler. Elsewhere the functions of this module do nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable
from types import FrameType

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

logger = logging.getLogger("lattice_rdzv")

# What each handler of this module raises.
_raised: dict[int, Callable[[int], BaseException]] = {}
# For whom they are there, by identity. Nothing is restored while one of them is left.
_users: set[int] = set()
_descriptor = -1
_before = -1
_hooked = False
# The signals that each thread blocked before it began to fork.
_masks: dict[int, set[int | signal.Signals]] = {}


def handle(number: int, frame: FrameType | None) -> None:
    """The handler that `install` sets: raises the exception that belongs to the signal."""
    raises = _raised.get(number)
    if _users and raises is not None:
        raise raises(number)
    # The last user was released in another thread, where its handlers could not be restored.
    release()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def install(user: object, numbers: Iterable[int], raises: Callable[[int], BaseException]) -> None:
    """Handles those of the signals that are at their default, until `uninstall` was called for the last user."""
    if not _is_main_thread():
        return
    _users.add(id(user))
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            _raised[number] = raises
            signal.signal(number, handle)


def tell(user: object, node: _core.Node, numbers: Collection[int]) -> None:
    """Tells the peers of `node` when one of the signals arrives. Never raises: without it they learn of a signal when
    the node leaves."""
    global _descriptor, _before, _hooked
    if not _is_main_thread():
        return
    _users.add(id(user))
    try:
        node.mark_leaving_on(list(numbers))
        if not numbers:
            return
        current = signal.set_wakeup_fd(-1)
        if current != -1 and current == _descriptor:
            _set_descriptor(current)
            return
        try:
            _descriptor = _core.signal_descriptor(current)
        except OSError:
            # Its owner has closed it without a word: nobody reads there any more.
            current = -1
            _descriptor = _core.signal_descriptor(current)
        _before = current
        signal.set_wakeup_fd(_descriptor, warn_on_full_buffer=False)
    except (RendezvousError, OSError, ValueError) as error:
        logger.warning("the peers will not learn of a signal before this node leaves: %s", error)
    if not _hooked:
        _hooked = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )


def uninstall(user: int) -> None:
    """Restores what was there before the first user, once this was the last one. It takes the user's `id`, because the
    user may not exist any more."""
    _users.discard(user)
    if not _users:
        release()


def release() -> None:
    """Restores the handlers and the descriptor, unless the application has replaced them since."""
    global _before
    if not _is_main_thread():
        return
    for number in list(_raised):
        if signal.getsignal(number) is handle:
            signal.signal(number, signal.SIG_DFL)
    _raised.clear()
    if _descriptor != -1:
        current = signal.set_wakeup_fd(-1)
        _set_descriptor(_before if current == _descriptor else current)
        _before = -1


def _set_descriptor(descriptor: int) -> None:
    try:
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    except (OSError, ValueError) as error:
        logger.debug("the wake-up descriptor that was set before is closed: %s", error)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _before_fork() -> None:
    # A signal that the child gets before its handlers are restored would be told to the parent's peers.
    _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    global _descriptor, _before
    _users.clear()
    _before = -1
    release()
    _descriptor = -1
    _after_fork_in_parent()
