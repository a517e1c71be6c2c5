"""What a termination signal does while this node waits, and how its peers learn of it.

Problem: before the first workers start nobody handles signals. SIGTERM then kills without a word to the peers, and in a
container, as process 1, does nothing at all. Later torch stops its workers for up to 30 s before anything of ours runs.
Choice: before blocking in the main thread, the signals that torch would handle later raise torch's own exception, if
they are still at their default; and the byte that Python writes for each signal goes to the core, which tells the peers
within a millisecond. `SIGINT` keeps Python's own handler: Ctrl-C stays a `KeyboardInterrupt`. A signal that the
application handles itself need not end this process, and is not told.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from torch.distributed.elastic.multiprocessing import api as torchs
from torch.distributed.elastic.multiprocessing.api import SignalException

from lattice_rdzv import _core, _process
from lattice_rdzv.errors import RendezvousError

logger = logging.getLogger("lattice_rdzv.torch")

_DEFAULT = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"

# One at a time owns the process's wake-up descriptor; a forked child must not write into its parent's.
_owner: Signals | None = None
_hooked = False


class Signals:
    """The handlers and the wake-up descriptor of one rendezvous handler."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._installed: list[signal.Signals] = []
        self._descriptor = -1
        self._before = -1
        # Whose descriptor `_before` is, if it is one of ours.
        self._beneath: Signals | None = None
        # The descriptor is the node's, and its number another file's once that is gone.
        self._node: _core.Node | None = None
        self._told: list[signal.Signals] = []

    def install(self) -> None:
        """Handles torch's signals that are at their default; does nothing outside the main thread."""
        if not self._may_act():
            return
        for number in _torchs_signals():
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise)
                self._installed.append(number)

    def wake(self, node: _core.Node) -> None:
        """Has the byte of each signal that ends this process, as it is handled now, told to the node; whoever listened
        before still hears it. The peers learn of a signal a little later where this does not work: never raises."""
        global _owner, _hooked
        if not self._may_act():
            return
        told = [number for number in _torchs_signals() if _ends_us(number)]
        if self._descriptor != -1:
            if told == self._told and self._is_current():
                return
            self._let_go()
        before = signal.set_wakeup_fd(-1)
        try:
            descriptor = node.wakeup_descriptor(before, told)
            signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        except (RendezvousError, OSError, ValueError) as error:
            logger.warning("the peers will learn of a signal only when this node leaves: %s", error)
            _put_back(before)
            return
        except BaseException:
            _put_back(before)
            raise
        self._before, self._descriptor, self._told = before, descriptor, told
        self._beneath = _owner if _owner is not None and _owner is not self and before != -1 else None
        self._node = node
        _owner = self
        if not _hooked:
            _hooked = True
            os.register_at_fork(after_in_child=_after_fork_in_child)
            _process.before_end.append(_before_end)

    def restore(self) -> None:
        """Puts back what was there, where nobody has put in something else since."""
        global _owner
        if not self._may_act():
            return
        for number in self._installed:
            if signal.getsignal(number) is _raise:
                signal.signal(number, signal.SIG_DFL)
        self._installed.clear()
        self._let_go()
        if _owner is self:
            _owner = None

    def _let_go(self) -> None:
        if self._descriptor == -1 or not self._may_act():
            return
        descriptor, self._descriptor = self._descriptor, -1
        current = signal.set_wakeup_fd(-1)
        _put_back(self._what_was_before() if current == descriptor else current)
        self._node = None

    def _is_current(self) -> bool:
        current = signal.set_wakeup_fd(-1)
        _put_back(current)
        return current == self._descriptor

    def _what_was_before(self) -> int:
        # Another of ours that was let go of meanwhile listens no more; what was before it may.
        beneath = self._beneath
        if beneath is None or beneath._descriptor == self._before:
            return self._before
        return beneath._what_was_before()

    def _may_act(self) -> bool:
        return os.getpid() == self._pid and threading.current_thread() is threading.main_thread()


def _torchs_signals() -> list[signal.Signals]:
    names = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", _DEFAULT).split(",")
    numbers = (getattr(signal, name.strip(), None) for name in names)
    return [number for number in numbers if isinstance(number, signal.Signals)]


def _ends_us(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    return handler in (
        _raise,
        signal.SIG_DFL,
        signal.default_int_handler,
        # What torch puts in when it starts workers.
        getattr(torchs, "_terminate_process_handler", _raise),
    )


def _put_back(descriptor: int) -> None:
    try:
        signal.set_wakeup_fd(descriptor)
    except (OSError, ValueError) as error:
        # Its owner closed it meanwhile: then nobody listens there any more.
        logger.debug("the wake-up descriptor from before is gone: %s", error)


def _raise(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number)
    raise SignalException(f"process {os.getpid()} got signal: {name.name}", sigval=name)


def _before_end() -> None:
    # The core's end of the descriptor is about to be closed: a signal that comes then would write into nothing.
    if _owner is not None:
        _owner._let_go()


def _after_fork_in_child() -> None:
    # A child that inherits a handler and the descriptor would tell the parent's peers of a signal that was the child's.
    if _owner is not None and threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
