"""Notifies the peers of this process's nodes about a signal that ends this process.

Problem: by default, SIGTERM kills a process before it can notify its peers, and the first process of a container ignores
it. A handler in Python runs only when the main thread executes Python code. Design: while a node of this process is in a
run, signals with their default disposition end the program by an exception instead. Python writes each signal's number to a
descriptor of the core, which notifies the peers within a millisecond. Handlers of the application are not replaced, and
the application's own descriptor still receives every signal.

Only the main thread can set a handler. In other threads, the functions of this module do nothing.
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

# The function that the handler of each signal calls. It raises an exception, or makes an event loop raise it.
_actions: dict[int, Callable[[int], None]] = {}
# The identities of the users of the handlers. The handlers are restored when the last user is released.
_users: set[int] = set()
_descriptor = -1
_before = -1
_hooked = False
# The signals that each thread had blocked before it forked.
_masks: dict[int, set[int | signal.Signals]] = {}


def handle(number: int, frame: FrameType | None) -> None:
    """Calls the action for the signal. `install` sets this handler."""
    action = _actions.get(number)
    if _users and action is not None:
        _announce(number)
        action(number)
        return
    # The last user was released in another thread, where its handlers could not be restored.
    release()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _announce(number: int) -> None:
    """Notifies the peers if Python did not, because the application has replaced the descriptor in the meantime, as
    `loop.add_signal_handler` of asyncio does."""
    if _descriptor == -1:
        return
    current = signal.set_wakeup_fd(-1)
    _set_descriptor(current)
    if current != _descriptor:
        try:
            os.write(_descriptor, bytes([number]))
        except OSError as error:
            logger.debug("the peers were not notified about signal %d: %s", number, error)


def install(user: object, numbers: Iterable[int], action: Callable[[int], None]) -> None:
    """Calls `action` for the signals that have their default disposition, until `uninstall` is called for the last user."""
    if not _is_main_thread():
        return
    _users.add(id(user))
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            _actions[number] = action
            signal.signal(number, handle)


def announce(user: object, node: _core.Node, numbers: Collection[int]) -> None:
    """Notifies the peers of `node` when one of the signals arrives. Never raises. If it fails, the peers are notified when
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
            # The owner closed the descriptor without resetting it, so no reader is left.
            current = -1
            _descriptor = _core.signal_descriptor(current)
        _before = current
        signal.set_wakeup_fd(_descriptor, warn_on_full_buffer=False)
    except (RendezvousError, OSError, ValueError) as error:
        logger.warning("cannot notify the peers about signals before this node leaves: %s", error)
    if not _hooked:
        _hooked = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )


def uninstall(user: int) -> None:
    """Restores the previous handlers if this is the last user. It takes the user's `id`, because the user object may no
    longer exist."""
    _users.discard(user)
    if not _users:
        release()


def release() -> None:
    """Restores the handlers and the descriptor, unless the application has replaced them in the meantime."""
    global _before
    if not _is_main_thread():
        return
    for number in list(_actions):
        if signal.getsignal(number) is handle:
            signal.signal(number, signal.SIG_DFL)
    _actions.clear()
    if _descriptor != -1:
        current = signal.set_wakeup_fd(-1)
        _set_descriptor(_before if current == _descriptor else current)
        _before = -1


def _set_descriptor(descriptor: int) -> None:
    try:
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    except (OSError, ValueError) as error:
        logger.debug("the previous wake-up descriptor is closed: %s", error)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _before_fork() -> None:
    # A signal that the child receives before its handlers are restored would be announced to the parent's peers.
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
