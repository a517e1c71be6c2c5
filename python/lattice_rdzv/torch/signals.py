"""The signals that end an agent, and their exceptions.

Problem: torch handles signals only after the first workers have started, and then stops the workers for up to 30 s before
it calls the handler. Design: before that, the signals that torch handles raise torch's exception if they have their
default disposition, and the peers are notified at once (`lattice_rdzv._signals`). `SIGINT` keeps Python's handler, so
Ctrl-C is a `KeyboardInterrupt`. The peers are not notified of a signal that the application handles itself, because such
a signal does not necessarily end this process.
"""

from __future__ import annotations

import os
import signal

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException

from lattice_rdzv import _signals

_DEFAULT = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"


def torch_signals() -> list[signal.Signals]:
    """Returns the signals that torch handles."""
    names = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", _DEFAULT).split(",")
    numbers = (getattr(signal, name.strip(), None) for name in names)
    return [number for number in numbers if isinstance(number, signal.Signals)]


def ending_signals() -> list[signal.Signals]:
    """Returns the signals of torch whose current handlers end this process."""
    ending = (
        _signals.handle,
        signal.SIG_DFL,
        signal.default_int_handler,
        # The handler that torch sets when it starts workers.
        getattr(api, "_terminate_process_handler", _signals.handle),
    )
    return [number for number in torch_signals() if signal.getsignal(number) in ending]


def end_agent(number: int) -> None:
    """Raises the exception that torch raises for a signal."""
    received = signal.Signals(number)
    raise SignalException(f"process {os.getpid()} got signal: {received.name}", sigval=received)
