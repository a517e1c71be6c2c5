"""The core's log records, handed to Python's `logging` by a thread of ours.

Problem: no task of the core may call into Python (it would need the interpreter at any moment, its exit included).
Choice: the core queues its records and a daemon thread fetches them. Under stock torchrun nobody configures `logging`,
so if neither the root logger nor ours has a handler, ours writes to stderr. `LATTICE_RDZV_LOG` (`off`, `debug`, `info`,
`warning`, `error`) rules; unset, it is `info` where the handler is ours and the application's own level where not.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from lattice_rdzv import _core

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
_JOIN_SECONDS = 1.0

_lock = threading.Lock()
_thread: threading.Thread | None = None
_stopping = threading.Event()


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr for as long as the application has configured nothing of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def start() -> None:
    """Configures `logging` under `lattice_rdzv` and starts the thread, once in a process.

    Raises:
        SettingsError: `LATTICE_RDZV_LOG` holds something else than the five words.
    """
    global _thread, _stopping
    with _lock:
        if _thread is not None:
            return
        _configure()
        _stopping = threading.Event()
        _thread = threading.Thread(target=_run, args=(_stopping,), name="lattice-rdzv-logs", daemon=True)
        _thread.start()


def stop(shutdown: Callable[[], None]) -> None:
    """Ends the core's runtime by `shutdown`, which also ends the pending fetch, then the thread, and logs what is left."""
    global _thread
    with _lock:
        thread, stopping, _thread = _thread, _stopping, None
    stopping.set()
    shutdown()
    if thread is None:
        return
    thread.join(_JOIN_SECONDS)
    if not thread.is_alive():
        _emit(_core.log_records(timeout_seconds=0.0))


def _after_fork_in_child() -> None:
    global _lock, _thread
    # The thread is not there, and the lock may have been held by another that is not there either.
    _lock = threading.Lock()
    _thread = None


os.register_at_fork(after_in_child=_after_fork_in_child)


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


def _run(stopping: threading.Event) -> None:
    logger = logging.getLogger("lattice_rdzv")
    level = logger.getEffectiveLevel()
    while not stopping.is_set():
        _emit(_core.log_records(timeout_seconds=_FETCH_SECONDS))
        now = logger.getEffectiveLevel()
        if now != level:
            level = now
            _core.log_level(level)


def _emit(records: list[tuple[int, str, str]]) -> None:
    for level, target, message in records:
        logger = logging.getLogger(target)
        if logger.isEnabledFor(level):
            logger.handle(logger.makeRecord(target, level, "(native)", 0, message, (), None))
