"""The core's log records, handed to Python's `logging` by a thread of this module.

Problem: no task of the core may call into Python (it would need the interpreter at any moment, its exit included).
Choice: the core queues its records and a daemon thread fetches them. Under stock torchrun nobody configures `logging`,
so if neither the root logger nor ours has a handler, ours writes to stderr. `LATTICE_RDZV_LOG` (`off`, `debug`, `info`,
`warning`, `error`) rules; unset, it is `info` where the handler is ours and the application's own level where not.

The exit hook waits for that thread with a limit, and logs nothing itself: a handler of `logging` takes a lock, which an
exception of a signal handler may have left locked.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from lattice_rdzv import _core, _threads

VARIABLE = "LATTICE_RDZV_LOG"
LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

# How late a level that the application changes reaches the core; records themselves arrive at once.
_FETCH_SECONDS = 5.0
# How long an exit waits for the records that are left.
_LAST_RECORDS_SECONDS = 1.0

# The log thread of each process, by its identity: a forked child inherits the entry of its parent, but not the thread.
_started: dict[tuple[int, int], _LogThread] = {}


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr for as long as the application has configured nothing of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def start() -> None:
    """Configures `logging` under `lattice_rdzv` and starts the thread, once in a process.

    Raises:
        SettingsError: `LATTICE_RDZV_LOG` holds something else than the five words.
        RendezvousError: The thread cannot be started.
    """
    identity = _core.process_identity()
    if identity in _started:
        return
    thread = _LogThread()
    # One operation of the interpreter: of two threads that come here at the same time, one finds the other's entry.
    if _started.setdefault(identity, thread) is not thread:
        return
    try:
        _configure()
        _threads.start(thread.run)
    except BaseException:
        _started.pop(identity, None)
        raise


def stop(shutdown: Callable[[], None]) -> None:
    """Ends the core's runtime by `shutdown`, which also ends the pending fetch, and has the thread log what is left."""
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
            # The end of the runtime may have logged something as well.
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
    """The level that `LATTICE_RDZV_LOG` asks for; `None` if it is not set or empty.

    Raises:
        SettingsError: It holds something else than the five words.
    """
    from lattice_rdzv.errors import SettingsError

    word = os.environ.get(VARIABLE, "").strip().lower()
    if not word:
        return None
    if word not in LEVELS:
        known = ", ".join(f"`{level}`" for level in LEVELS)
        raise SettingsError(f"environment `{VARIABLE}` must be one of {known}, and is: `{word}`")
    return LEVELS[word]


def _configure() -> None:
    logger = logging.getLogger("lattice_rdzv")
    wanted = level_from_environment()
    ours = not logging.getLogger().handlers and not logger.handlers
    if ours:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    if wanted is not None:
        logger.setLevel(wanted)
    elif ours and logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    _core.log_level(logger.getEffectiveLevel())


def _emit(records: list[tuple[int, str, str]]) -> None:
    for level, target, message in records:
        logger = logging.getLogger(target)
        if logger.isEnabledFor(level):
            logger.handle(logger.makeRecord(target, level, "(native)", 0, message, (), None))
