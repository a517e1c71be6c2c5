"""Several nodes in one process: their blocking calls run side by side in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A call that runs in a thread of its own."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has come to an end."""
        return not self._thread.is_alive()

    def result(self, *, timeout_seconds: float = 30.0) -> T:
        """Waits for its end; returns what it returned or raises what it raised."""
        self._thread.join(timeout_seconds)
        assert self.done, f"the call did not end within {timeout_seconds:g} s"
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def _run(self) -> None:
        try:
            self._answer.append(self._call())
        except BaseException as error:
            self._error = error


def together(*calls: Callable[[], T], timeout_seconds: float = 30.0) -> list[T]:
    """Runs the calls side by side and returns their answers in the same order."""
    pending = [Pending(call) for call in calls]
    return [one.result(timeout_seconds=timeout_seconds) for one in pending]
