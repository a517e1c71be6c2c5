"""Stops a command that serves until SIGTERM or SIGINT."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(BaseException):
    """A signal requested a stop."""


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Both signals raise `StopRequested` in the main thread. Restores their handlers, unless they are ignored by then."""
    before = {number: signal.signal(number, _request_stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _request_stop:
                signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignores both signals until the process ends, because a second one must not interrupt the stop."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _request_stop(number: int, _frame: FrameType | None) -> None:
    raise StopRequested(signal.Signals(number).name)
