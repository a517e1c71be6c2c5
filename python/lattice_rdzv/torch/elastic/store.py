"""The store on which one world's group is formed.

Problem: a member that dies while the group is formed never puts its address, and gloo would wait for it until the timeout.
Design: this store's waits end as soon as the interrupt of the world fires, or when the run announces that the world
changes. New nodes alone end no wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from lattice_rdzv import _core
from lattice_rdzv._world import World
from lattice_rdzv.errors import RendezvousError, StoreTimeoutError
from lattice_rdzv.torch.elastic.interrupt import Interrupt
from lattice_rdzv.torch.errors import raises_store_errors
from lattice_rdzv.torch.store import LatticeStore

# How often a wait looks at the interrupt after new nodes were announced, because the store then reports no other change.
_LOOK_SECONDS = 0.2


class WorldStore(LatticeStore):
    """The store of one world, whose waits end with it."""

    def __init__(self, world: World, node: _core.Node, interrupt: Interrupt) -> None:
        super().__init__(world._core.store_put_back(), node, rank=world.rank, size=world.size, round_number=world.round)
        self._interrupt = interrupt

    @raises_store_errors
    def get(self, key: str) -> bytes:
        """Waits for a key and returns its value."""
        return self._wait([key], self._timeout_seconds())[0]

    @raises_store_errors
    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Waits for all of the keys and returns their values."""
        return self._wait(list(keys), self._timeout_seconds())

    @raises_store_errors
    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all of the keys exist, for at most the longer one of `timeout` and the store's own.

        gloo passes the limit of one attempt to connect, but a member may be late with its address.
        """
        given_seconds = 0.0 if timeout is None else timeout.total_seconds()
        self._wait(list(keys), max(self._timeout_seconds(), given_seconds))

    def _wait(self, keys: list[str], limit_seconds: float) -> list[bytes]:
        deadline = time.monotonic() + limit_seconds
        while keys:
            fired = self._interrupt.fired
            if fired is not None:
                raise dist.DistStoreError(f"the world has ended: {fired.why}")
            left_seconds = max(0.0, deadline - time.monotonic())
            growing = self._interrupt.growth is not None or self._node.change is not None
            try:
                values = self._store.multi_get(
                    keys,
                    timeout_seconds=min(left_seconds, _LOOK_SECONDS) if growing else left_seconds,
                    until_change=not growing,
                ).wait()
            except StoreTimeoutError:
                if left_seconds <= _LOOK_SECONDS or not growing:
                    raise
                continue
            found = [value for value in values if value is not None]
            if len(found) == len(keys):
                return found
            change = self._node.change
            if change is None or change.kind != "newcomers":
                raise RendezvousError(f"the world has ended: {change.why if change else 'the run is closed'}")
        return []
