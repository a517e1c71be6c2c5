"""Connects the members of a group before torch 2.9, where gloo keeps its first time limit for all collectives.

Problem: with a long limit, a rank that is gone while the group is formed blocks the others for that time, and gloo has no
function that ends this wait. With a short one, a collective fails whenever a rank pauses. Design: gloo gets the long limit,
and its constructor runs in a thread. If the world ends, or the limit for forming expires, the thread is left behind. It ends
when gloo gives up, and changes nothing of torch, because the constructor only connects.

torch calls the constructor by a name of its module, which is replaced meanwhile. Since torch 2.9 (pull request 158128), a
collective uses the limit that is set when it begins, so that nothing of this is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d


def limit_is_fixed() -> bool:
    """Returns whether gloo keeps the limit with which a group was formed. Both came in one change of torch."""
    return not hasattr(distributed_c10d.ProcessGroupGloo, "set_timeout")


@contextmanager
def connecting(broken: threading.Event, timeout: timedelta) -> Iterator[None]:
    """A context in which the constructor of gloo's groups raises `RuntimeError` when this event is set, or after this time."""
    gloo: Any = distributed_c10d.ProcessGroupGloo

    class Connecting(type):
        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            return _Attempt(lambda: gloo(*arguments, **options), broken).wait(timeout)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, gloo)

    names: Any = distributed_c10d
    names.ProcessGroupGloo = Connecting("ProcessGroupGloo", (), {})
    try:
        yield
    finally:
        names.ProcessGroupGloo = gloo


class _Attempt:
    """One call in a separate thread."""

    def __init__(self, call: Any, broken: threading.Event) -> None:
        self._call = call
        # The thread sets it, too: then the outcome is there.
        self._broken = broken
        self._result: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="lattice-rdzv-connect", daemon=True).start()

    def wait(self, timeout: timedelta) -> Any:
        """Returns the result. Raises the error of the call, or `RuntimeError` if it has not ended."""
        self._broken.wait(timeout.total_seconds())
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError(f"gloo has not connected all ranks: the world has ended, or {timeout} have passed")
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:
            self._error = error
        self._broken.set()
