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


class Breaker:
    """Ends waits for the constructor of gloo's groups. It stays set, so that later ones end at once."""

    def __init__(self) -> None:
        self.changed: threading.Condition = threading.Condition()
        self.is_set: bool = False

    def set(self) -> None:
        """Ends the waits."""
        with self.changed:
            self.is_set = True
            self.changed.notify_all()


@contextmanager
def connecting(broken: Breaker, timeout: timedelta) -> Iterator[None]:
    """A context in which the constructor of gloo's groups raises `RuntimeError` when this is set, or after this time."""
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

    def __init__(self, call: Any, broken: Breaker) -> None:
        self._call = call
        self._broken = broken
        self._ended = False
        self._result: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="lattice-rdzv-connect", daemon=True).start()

    def wait(self, timeout: timedelta) -> Any:
        """Returns the result. Raises the error of the call, or `RuntimeError` if it has not ended."""
        with self._broken.changed:
            self._broken.changed.wait_for(lambda: self._ended or self._broken.is_set, timeout.total_seconds())
        if self._error is not None:
            raise self._error
        if self._result is None:
            seconds = timeout.total_seconds()
            raise RuntimeError(
                f"gloo did not connect all ranks within {seconds:g} s (`form_timeout_seconds`), or the world ended meanwhile"
            )
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:
            self._error = error
        with self._broken.changed:
            self._ended = True
            self._broken.changed.notify_all()
