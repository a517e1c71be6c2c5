"""Passes the core's log records to Python's `logging`.

Problem: tasks of the core cannot call into Python, because they would need the interpreter at any time, including its
exit. Design: the core queues its records, and a daemon thread fetches them. Levels and handlers belong to the program, with
two exceptions. torchrun does not configure `logging`, so under torchrun and `lattice-rdzv` the level is `info`, and this
module adds a handler that writes to stderr if neither the root logger nor the logger `lattice_rdzv` has one. If
`LATTICE_RDZV_LOG` is set (`off`, `debug`, `info`, `warning`, `error`), its level and the handler apply to every program.
With `LATTICE_RDZV_LOG_FORMAT=json`, that handler writes one JSON object for each line, with the run, the node and the round.
Every record has these as attributes for other handlers, too. On a terminal, the lines of a waiting node (logger
`lattice_rdzv.waiting`) come every second, and the handler replaces each of them by the next line.

The exit hook waits for the thread with a time limit and logs nothing itself: a handler of `logging` takes a lock, which
an exception in a signal handler may have left locked.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from lattice_rdzv import _core, _threads

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

VARIABLE = "LATTICE_RDZV_LOG"
FORMAT_VARIABLE = "LATTICE_RDZV_LOG_FORMAT"
LEVELS = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

# Maximum delay until a level that the application changes reaches the core. Records arrive without this delay.
_FETCH_SECONDS = 5.0
# The interval of the lines of a waiting node on a terminal, and their logger.
_REDRAW_SECONDS = 1.0
_WAITING = "lattice_rdzv.waiting"
# How long an exit waits for the remaining records.
_LAST_RECORDS_SECONDS = 1.0

# The log thread of each process, by process identity. A forked child inherits the entry of its parent, but not the thread.
_started: dict[tuple[int, int], _LogThread] = {}
_is_of_a_command = False
# The run, the node and the round of records that Python code of this package creates: those of the node that joined last.
_origin: dict[str, str | int | None] = {"run": None, "node": None, "round": None}


def note_origin(**origin: str | int | None) -> None:
    """Sets the `run`, `node` or `round` of later records of Python code."""
    _origin.update(origin)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the JSON with the time in UTC, the level, the logger, the message, and the origin."""
        import json

        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name, known) for name, known in _origin.items()},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the present `sys.stderr` as long as the application has not configured logging."""

    def __init__(self) -> None:
        # Not `StreamHandler`'s, which would keep the stream of this moment.
        logging.Handler.__init__(self)
        # The rows of the terminal that the next record replaces.
        self._rows = 0

    @property
    def stream(self) -> TextIO:
        """The stream that a program may have redirected after it joined."""
        return sys.stderr

    def redraws(self) -> bool:
        """Returns whether the stream is a terminal on which a line can be replaced."""
        if logging.getLogger().handlers or isinstance(self.formatter, JsonFormatter):
            return False
        # A program may have replaced the stream by something that only writes, or have closed it.
        isatty = getattr(self.stream, "isatty", None)
        return isatty is not None and isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        try:
            text = self.format(record)
            erase = "\r" + "\x1b[A" * (self._rows - 1) + "\x1b[J" if self._rows else ""
            is_replaced = record.name == _WAITING and self.redraws()
            # The terminal of a container has no size while no client is attached to it.
            columns = (os.get_terminal_size(self.stream.fileno()).columns or 80) if is_replaced else 80
            self._rows = -(-len(text) // columns) if is_replaced else 0
            self.stream.write(erase + text + ("" if is_replaced else "\n"))
            self.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self._rows:
            self._rows = 0
            self.stream.write("\n")
        super().close()


def is_of_a_command() -> None:
    """Notes that the program is torchrun or `lattice-rdzv`, which have no configuration of `logging`."""
    global _is_of_a_command
    _is_of_a_command = True


def start() -> None:
    """Configures the logger `lattice_rdzv` and starts the thread, once per process.

    Raises:
        SettingsError: `LATTICE_RDZV_LOG` or `LATTICE_RDZV_LOG_FORMAT` has an unknown value.
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


def line_seconds() -> float | None:
    """Returns the interval of the lines of a waiting node if they replace each other on a terminal, and otherwise `None`."""
    handlers = logging.getLogger("lattice_rdzv").handlers
    replaces = any(isinstance(handler, _StderrHandler) and handler.redraws() for handler in handlers)
    return _REDRAW_SECONDS if replaces else None


def is_json() -> bool:
    """Returns whether `LATTICE_RDZV_LOG_FORMAT` requests JSON.

    Raises:
        SettingsError: The value is neither `text` nor `json`.
    """
    from lattice_rdzv.errors import SettingsError

    word = os.environ.get(FORMAT_VARIABLE, "").strip().lower()
    if word not in ("", "text", "json"):
        raise SettingsError(f"environment `{FORMAT_VARIABLE}` must be `text` or `json`, but is `{word}`")
    return word == "json"


def _configure() -> None:
    formatter = JsonFormatter() if is_json() else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger = logging.getLogger("lattice_rdzv")
    wanted = level_from_environment()
    bare = not logging.getLogger().handlers and not logger.handlers
    if bare and (_is_of_a_command or wanted is not None):
        handler = _StderrHandler()
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    if wanted is not None:
        logger.setLevel(wanted)
    elif bare and _is_of_a_command and logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    _core.log_level(logger.getEffectiveLevel())


def _emit(records: list[tuple[int, str, str, tuple[str | None, str | None, int | None]]]) -> None:
    for level, target, message, (run, node, number) in records:
        logger = logging.getLogger(target)
        if logger.isEnabledFor(level):
            origin = {"run": run, "node": node, "round": number}
            logger.handle(logger.makeRecord(target, level, "(native)", 0, message, (), None, extra=origin))
