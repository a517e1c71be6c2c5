"""Waits for a condition with a deadline. The error names the condition. Tests do not sleep for any other reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A machine under load may need this time for an operation that is usually fast.
PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.02


def wait_for(
    what: str,
    condition: Callable[[], T | None],
    *,
    timeout_seconds: float = PATIENCE_SECONDS,
    detail: Callable[[], str] = str,
    every_seconds: float = _LOOK_SECONDS,
) -> T:
    """Returns the first true result of `condition`. Fails with `what` and `detail()` if there is none in time."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds:g} s: {what}\n{detail()}")
        time.sleep(every_seconds)
