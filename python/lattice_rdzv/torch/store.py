"""The store of a round as a `torch.distributed.Store`.

Calls are forwarded to the core unchanged, except for keys of torch's agent, which are known by name: those of the worker
rank exchange (`exchange`), and those of the exit barrier (`exit_barrier`).

Queues and `list_keys` work directly, but not through a `PrefixStore`, because torch does not forward them to a Python store.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from lattice_rdzv import _core
from lattice_rdzv.errors import LeftError
from lattice_rdzv.torch.errors import raises_store_errors
from lattice_rdzv.torch.exchange import Exchange, are_exchanged
from lattice_rdzv.torch.exit_barrier import EXIT_BARRIER_COUNT, EXIT_BARRIER_FULL, ExitBarrier

if TYPE_CHECKING:
    # torch exports this name at run time, but not in its types.
    from torch._C._distributed_c10d import Store
else:
    from torch.distributed import Store


class LatticeStore(Store):
    """Implements torch's whole `Store` interface with the store of one round.

    Calls wait for up to `timeout` (300 s, `set_timeout`) and retry network errors until then. Afterwards they raise
    `torch.distributed.DistStoreError` with `timeout` in the message. Every write is applied exactly once.

    Keep a reference to the store if you wrap it in a `PrefixStore`, because torch keeps only the C++ part alive.
    """

    if TYPE_CHECKING:
        # torch's types have only the setter.
        @property
        def timeout(self) -> timedelta: ...

    def __init__(self, store: _core.Store, node: _core.Node, *, rank: int, size: int, round_number: int) -> None:
        super().__init__()
        self._store = store
        self._node = node
        self._rank = rank
        self._size = size
        self._round_number = round_number
        self.exchange: Exchange = Exchange(node, rank=rank, size=size, round_number=round_number)
        self.exit_barrier: ExitBarrier = ExitBarrier(store, node, size=size, round_number=round_number)
        # torch keeps only the C++ part of a clone alive, too.
        self._clones: list[LatticeStore] = []

    @raises_store_errors
    def set(self, key: str, value: str | bytes) -> None:
        """Puts a value."""
        content = _bytes(value)
        self.exchange.observe_put(key, content)
        try:
            self._store.set(key, content, timeout_seconds=self._timeout_seconds()).wait()
        except LeftError:
            if not self.exchange.is_abandoned([key]):
                raise

    @raises_store_errors
    def get(self, key: str) -> bytes:
        """Waits for a key and returns its value."""
        agents = are_exchanged([key])
        value = None
        try:
            value = self._store.get(key, timeout_seconds=self._timeout_seconds(), until_change=agents).wait()
        except LeftError:
            if not self.exchange.is_abandoned([key]):
                raise
        return self.exchange.placeholder_value(key) if value is None else value

    @raises_store_errors
    def add(self, key: str, value: int) -> int:
        """Adds to a counter and returns its new value."""
        if key == EXIT_BARRIER_COUNT:
            return self.exit_barrier.add(value, timeout_seconds=self._timeout_seconds())
        return self._store.add(key, value, timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Puts `desired_value` if the key holds `expected_value`, or if the key is absent and `expected_value` is empty.
        Returns the value afterwards."""
        expected, desired = _bytes(expected_value), _bytes(desired_value)
        return self._store.compare_set(key, expected, desired, timeout_seconds=self._timeout_seconds()).wait()[1]

    @raises_store_errors
    def check(self, keys: Sequence[str]) -> bool:
        """Returns whether all of the keys exist. A queue that is not empty counts as a key, as in `TCPStore`."""
        return self._store.check(list(keys), timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all of the keys exist, as in `check`, for at most `timeout` (default: the store's)."""
        limit_seconds = self._timeout_seconds() if timeout is None else timeout.total_seconds()
        names = list(keys)
        if names == [EXIT_BARRIER_FULL]:
            self.exit_barrier.wait(timeout_seconds=limit_seconds)
        elif names:
            self._store.wait(names, timeout_seconds=limit_seconds).wait()

    @raises_store_errors
    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Waits for all of the keys and returns their values."""
        names = list(keys)
        agents = are_exchanged(names)
        values: list[bytes | None] = [None] * len(names)
        try:
            values = self._store.multi_get(names, timeout_seconds=self._timeout_seconds(), until_change=agents).wait()
        except LeftError:
            if not self.exchange.is_abandoned(names):
                raise
        return [
            self.exchange.placeholder_value(name) if value is None else value
            for name, value in zip(names, values, strict=True)
        ]

    @raises_store_errors
    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Puts many values."""
        names = list(keys)
        items = [(name, _bytes(value)) for name, value in zip(names, values, strict=True)]
        try:
            self._store.multi_set(items, timeout_seconds=self._timeout_seconds()).wait()
        except LeftError:
            if not self.exchange.is_abandoned(names):
                raise

    @raises_store_errors
    def append(self, key: str, value: str | bytes) -> None:
        """Appends to a value."""
        self._store.append(key, _bytes(value), timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def delete_key(self, key: str) -> bool:
        """Deletes a key. Returns whether it existed."""
        return self._store.delete(key, timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def num_keys(self) -> int:
        """Returns the number of keys."""
        return self._store.count(timeout_seconds=self._timeout_seconds()).wait()

    # The names that a `PrefixStore` calls.
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def has_extended_api(self) -> bool:
        """Returns whether `append`, `multi_get` and `multi_set` are supported."""
        return True

    @raises_store_errors
    def queue_push(self, key: str, value: str | bytes) -> None:
        """Puts a value at the end of a queue."""
        self._store.queue_push(key, _bytes(value), timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Takes the first value of a queue. If the queue is empty, waits with `block`, and raises otherwise."""
        value = self._store.queue_pop(key, block=block, timeout_seconds=self._timeout_seconds()).wait()
        if value is None:
            # A separate class since torch 2.8.
            empty: type[Exception] = getattr(dist, "QueueEmptyError", dist.DistStoreError)
            raise empty(f"the queue is empty: {key}")
        return value

    @raises_store_errors
    def queue_len(self, key: str) -> int:
        """Returns the number of values in a queue."""
        return self._store.queue_len(key, timeout_seconds=self._timeout_seconds()).wait()

    @raises_store_errors
    def list_keys(self) -> list[str]:
        """Returns all keys."""
        return self._store.list(timeout_seconds=self._timeout_seconds()).wait()

    def clone(self) -> LatticeStore:
        """Returns another store with these keys and a separate timeout."""
        clone = LatticeStore(self._store, self._node, rank=self._rank, size=self._size, round_number=self._round_number)
        clone.set_timeout(self.timeout)
        self._clones.append(clone)
        return clone

    def __repr__(self) -> str:
        return f"<LatticeStore of round {self._round_number}, rank {self._rank} of {self._size}>"

    def _timeout_seconds(self) -> float:
        return float(self.timeout.total_seconds())


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
