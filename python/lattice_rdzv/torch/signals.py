"""Which signals end an agent, and by which exception.

Problem: torch handles signals only once the first workers have started, and then stops the workers for up to 30 s before
it calls the handler. Choice: before that, the signals that torch would handle raise torch's own exception if they are
still at their default, and the peers learn of each signal at once (`lattice_rdzv._signals`). `SIGINT` keeps Python's own
handler: Ctrl-C stays a `KeyboardInterrupt`. The peers do not learn of a signal that the application handles itself,
because it need not end this process.
"""

from __future__ import annotations

import os
import signal

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException

from lattice_rdzv import _signals

_DEFAULT = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"


def torch_signals() -> list[signal.Signals]:
    """The signals that torch handles."""
    names = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", _DEFAULT).split(",")
    numbers = (getattr(signal, name.strip(), None) for name in names)
    return [number for number in numbers if isinstance(number, signal.Signals)]


def ending_signals() -> list[signal.Signals]:
    """Those of them that end this process as they are handled now."""
    ending = (
        _signals.handle,
        signal.SIG_DFL,
        signal.default_int_handler,
        # What torch sets when it starts workers.
        getattr(api, "_terminate_process_handler", _signals.handle),
    )
    return [number for number in torch_signals() if signal.getsignal(number) in ending]


def as_exception(number: int) -> BaseException:
    """What torch raises for a signal."""
    received = signal.Signals(number)
    return SignalException(f"process {os.getpid()} got signal: {received.name}", sigval=received)
