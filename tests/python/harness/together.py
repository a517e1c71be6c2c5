"""Several nodes in one process: their blocking calls run at the same time in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A call that runs in a separate thread."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def result(self, *, timeout_seconds: float = 60.0) -> T:
        """Waits for the end of the call. Returns its result, or raises its exception."""
        self._thread.join(timeout_seconds)
        assert self.done, f"the call did not end within {timeout_seconds:g} s"
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error


def together(*calls: Callable[[], T], timeout_seconds: float = 60.0) -> list[T]:
    """Runs the calls at the same time and returns their results in the order of the calls."""
    pending = [Pending(call) for call in calls]
    return [one.result(timeout_seconds=timeout_seconds) for one in pending]
