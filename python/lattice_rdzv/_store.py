"""`Store`: the key-value space of a round or of a whole run.

The methods of the core's store return calls. This class waits for them, and `aio.Store` awaits them.
"""

from __future__ import annotations

# Type checkers read it as true. Importing it from `typing` would take longer than all the rest of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from lattice_rdzv import _core


class Store:
    """A key-value space that the nodes of a run share. Keys are strings. Values are bytes, or any object with the buffer
    protocol.

    Each write is applied exactly once, also if its request has to be repeated. Each method retries transport errors
    until `timeout_seconds` is over and then raises `StoreTimeoutError`; `None` means no limit.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _core.Store) -> None:
        self._core = core

    def set(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Sets the value of a key."""
        self._core.set(key, value, timeout_seconds=timeout_seconds).wait()

    def get(self, key: str, *, timeout_seconds: float | None = 300.0) -> bytes | None:
        """Returns the present value of a key, or `None` if the key does not exist. Does not wait for the key."""
        return self._core.get_now([key], timeout_seconds=timeout_seconds).wait()[0]

    def wait(self, key: str, *, timeout_seconds: float | None = 300.0) -> bytes:
        """Waits until a key exists and returns its value."""
        return _value(self._core.get(key, timeout_seconds=timeout_seconds).wait())

    def multi_get(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> list[bytes | None]:
        """Returns the present value of each key, or `None` for a key that does not exist. Does not wait for the keys."""
        return self._core.get_now(keys, timeout_seconds=timeout_seconds).wait()

    def multi_wait(
        self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0, until_change: bool = False
    ) -> list[bytes | None]:
        """Waits until all keys exist and returns their values.

        With `until_change`, stops waiting as soon as the round's world is known to change or the run is closed, and
        returns `None` for each key that does not exist.
        """
        return self._core.multi_get(keys, timeout_seconds=timeout_seconds, until_change=until_change).wait()

    def multi_set(self, items: Sequence[tuple[str, Buffer]], *, timeout_seconds: float | None = 300.0) -> None:
        """Sets many values. If this fails, some of them may have been set."""
        self._core.multi_set(items, timeout_seconds=timeout_seconds).wait()

    def add(self, key: str, amount: int = 1, *, timeout_seconds: float | None = 300.0) -> int:
        """Adds `amount` to a counter and returns its new value. A counter starts at 0."""
        return self._core.add(key, amount, timeout_seconds=timeout_seconds).wait()

    def compare_set(
        self, key: str, expected: Buffer, desired: Buffer, *, timeout_seconds: float | None = 300.0
    ) -> bool:
        """Sets the value to `desired` if it is `expected`, or if the key does not exist and `expected` is empty.

        Returns whether it has set the value.
        """
        return self._core.compare_set(key, expected, desired, timeout_seconds=timeout_seconds).wait()[0]

    def append(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Appends to the value of a key, which is empty if the key does not exist."""
        self._core.append(key, value, timeout_seconds=timeout_seconds).wait()

    def delete(self, key: str, *, timeout_seconds: float | None = 300.0) -> bool:
        """Deletes a key and returns whether it existed. Its queue remains."""
        return self._core.delete(key, timeout_seconds=timeout_seconds).wait()

    def check(self, keys: Sequence[str], *, timeout_seconds: float | None = 300.0) -> bool:
        """Returns whether all keys exist now. A queue that is not empty counts as a key."""
        return self._core.check(keys, timeout_seconds=timeout_seconds).wait()

    def count(self, *, timeout_seconds: float | None = 300.0) -> int:
        """Returns the number of keys, without queues."""
        return self._core.count(timeout_seconds=timeout_seconds).wait()

    def list(self, *, timeout_seconds: float | None = 300.0) -> list[str]:
        """Returns the keys in order, without queues."""
        return self._core.list(timeout_seconds=timeout_seconds).wait()

    def queue_push(self, key: str, value: Buffer, *, timeout_seconds: float | None = 300.0) -> None:
        """Adds a value at the end of a queue."""
        self._core.queue_push(key, value, timeout_seconds=timeout_seconds).wait()

    def queue_pop(self, key: str, *, block: bool = True, timeout_seconds: float | None = 300.0) -> bytes | None:
        """Removes the first value of a queue and returns it.

        If the queue is empty, waits for a value, or with `block=False` returns `None`. If the call ends early, by its time
        limit, a signal, or the end of its task, the value that it was about to return remains with this node: the node's next
        `queue_pop` returns it.
        """
        return self._core.queue_pop(key, block=block, timeout_seconds=timeout_seconds).wait()

    def queue_keep(self, key: str, value: Buffer) -> None:
        """Keeps a value that `queue_pop` returned for the next `queue_pop` of this node, because it did not reach its
        receiver. Leaving the run puts such values back at the end of their queue."""
        self._core.queue_keep(key, value).wait()

    def queue_len(self, key: str, *, timeout_seconds: float | None = 300.0) -> int:
        """Returns the number of values in a queue."""
        return self._core.queue_len(key, timeout_seconds=timeout_seconds).wait()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__}>"

    # The name of `multi_get` before 0.2.0.
    get_now = multi_get


def _value(value: bytes | None) -> bytes:
    assert value is not None, "only a wait until a change can end without a value"
    return value
