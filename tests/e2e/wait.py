"""Waits for conditions in a cluster, where a command can fail although the next one succeeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from harness import wait

from e2e.kubernetes import PATIENCE_SECONDS, Failed

T = TypeVar("T")


def wait_for(
    what: str,
    condition: Callable[[], T | None],
    *,
    timeout_seconds: float = PATIENCE_SECONDS,
    detail: Callable[[], str] = str,
    every_seconds: float = 1.0,
) -> T:
    """As `harness.wait.wait_for`, but repeats a command that fails. If the time is over, the message has its last error."""
    failure = ""

    def answer() -> T | None:
        nonlocal failure
        try:
            return condition()
        except Failed as failed:
            failure = f"{failed}\n"
            return None

    return wait.wait_for(
        what,
        answer,
        timeout_seconds=timeout_seconds,
        detail=lambda: failure + detail(),
        every_seconds=every_seconds,
    )
