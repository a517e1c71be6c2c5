"""The calls of the core that one event loop awaits, whether it is one of asyncio or of trio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from lattice_rdzv import _core

T = TypeVar("T")


class Event(Protocol):
    """An event of asyncio or trio."""

    def set(self) -> None:
        """Wakes the task that waits."""

    async def wait(self) -> object:
        """Waits until `set` was called."""


class Calls:
    """The calls of one event loop. Only the thread of the loop uses it."""

    def __init__(self, event: Callable[[], Event]) -> None:
        self.completions: _core.Completions = _core.Completions()
        self._event = event
        self._waiting: dict[int, Event] = {}

    def wake(self) -> None:
        """Wakes the tasks whose calls have ended. The event loop calls it when the descriptor of `completions` is readable."""
        for number in self.completions.fetch():
            ended = self._waiting.get(number)
            if ended is not None:
                ended.set()

    async def result(self, call: _core.Call[T]) -> T:
        """Awaits a call, and cancels it together with the task."""
        ended = self._event()
        number = call.start(self.completions)
        self._waiting[number] = ended
        try:
            await ended.wait()
            # Fetched here and not when it arrives: the task may have been cancelled in between.
            return call.result()
        finally:
            del self._waiting[number]
            call.cancel()
