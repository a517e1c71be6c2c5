"""Passes the core's log records to Python's `logging`.

Problem: tasks of the core cannot call into Python, because they would need the interpreter at any time, including its
exit. Design: the core queues its records, and a daemon thread fetches them. Levels and handlers belong to the program, with
two exceptions. torchrun does not configure `logging`, so under torchrun and `lattice-rdzv` the level is `info`, and this
module adds a handler that writes to stderr if neither the root logger nor the logger `lattice_rdzv` has one. If
`LATTICE_RDZV_LOG` is set (`off`, `debug`, `info`, `warning`, `error`), its level and the handler apply to every program.

The exit hook waits for the thread with a time limit and logs nothing itself: a handler of `logging` takes a lock, which
an exception in a signal handler may have left locked.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from lattice_rdzv import _core, _threads

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

VARIABLE = "LATTICE_RDZV_LOG"
LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

# Maximum delay until a level that the application changes reaches the core. Records arrive without this delay.
_FETCH_SECONDS = 5.0
# How long an exit waits for the remaining records.
_LAST_RECORDS_SECONDS = 1.0

# The log thread of each process, by process identity. A forked child inherits the entry of its parent, but not the thread.
_started: dict[tuple[int, int], _LogThread] = {}
_is_of_a_command = False


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the present `sys.stderr` as long as the application has not configured logging."""

    def __init__(self) -> None:
        # Not `StreamHandler`'s, which would keep the stream of this moment.
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The stream that a program may have redirected after it joined."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def is_of_a_command() -> None:
    """Notes that the program is torchrun or `lattice-rdzv`, which have no configuration of `logging`."""
    global _is_of_a_command
    _is_of_a_command = True


def start() -> None:
    """Configures the logger `lattice_rdzv` and starts the thread, once per process.

    Raises:
        SettingsError: `LATTICE_RDZV_LOG` is not one of the five levels.
        RendezvousError: The thread cannot be started.
    """
    identity = _core.process_identity()
    if identity in _started:
        return
    thread = _LogThread()
    # `setdefault` is atomic: if two threads call this in parallel, one of them finds the entry of the other.
    if _started.setdefault(identity, thread) is not thread:
        return
    try:
        _configure()
        _threads.start(thread.run)
    except BaseException:
        _started.pop(identity, None)
        raise


def stop(shutdown: Callable[[], None]) -> None:
    """Stops the core's runtime with `shutdown`, which also ends the pending fetch, and lets the thread log the remaining records."""
    thread = _started.pop(_core.process_identity(), None)
    if thread is None:
        shutdown()
    else:
        thread.stop(shutdown)


class _LogThread:
    def __init__(self) -> None:
        self._stopping = False
        self._shut_down = _threads.Gate()
        self._done = _threads.Gate()

    def stop(self, shutdown: Callable[[], None]) -> None:
        self._stopping = True
        try:
            shutdown()
        finally:
            self._shut_down.open()
            self._done.wait(_LAST_RECORDS_SECONDS)

    def run(self) -> None:
        threading.current_thread().name = "lattice-rdzv-logs"
        try:
            self._fetch()
            # The shutdown of the runtime may also have logged records.
            self._shut_down.wait(_FETCH_SECONDS)
            _emit(_core.log_records(timeout_seconds=0.0))
        finally:
            self._done.open()

    def _fetch(self) -> None:
        logger = logging.getLogger("lattice_rdzv")
        level = logger.getEffectiveLevel()
        while not self._stopping:
            _emit(_core.log_records(timeout_seconds=_FETCH_SECONDS))
            now = logger.getEffectiveLevel()
            if now != level:
                level = now
                _core.log_level(level)


def level_from_environment() -> int | None:
    """Returns the level in `LATTICE_RDZV_LOG`, or `None` if the variable is not set or empty.

    Raises:
        SettingsError: The value is not one of the five levels.
    """
    from lattice_rdzv.errors import SettingsError

    word = os.environ.get(VARIABLE, "").strip().lower()
    if not word:
        return None
    if word not in LEVELS:
        known = ", ".join(f"`{level}`" for level in LEVELS)
        raise SettingsError(f"environment `{VARIABLE}` must be one of {known}, but is `{word}`")
    return LEVELS[word]


def _configure() -> None:
    logger = logging.getLogger("lattice_rdzv")
    wanted = level_from_environment()
    bare = not logging.getLogger().handlers and not logger.handlers
    if bare and (_is_of_a_command or wanted is not None):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    if wanted is not None:
        logger.setLevel(wanted)
    elif bare and _is_of_a_command and logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    _core.log_level(logger.getEffectiveLevel())


def _emit(records: list[tuple[int, str, str]]) -> None:
    for level, target, message in records:
        logger = logging.getLogger(target)
        if logger.isEnabledFor(level):
            logger.handle(logger.makeRecord(target, level, "(native)", 0, message, (), None))
