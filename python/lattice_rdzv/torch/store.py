"""The round's key-value space as a `torch.distributed.Store`.

Problem: torch's agents exchange their workers' sizes and wait for each other at the end over this store, both outside
every `try` and for minutes, also when the one they wait for is gone; and no exception of ours makes an agent re-form.
Choice: the calls go to the core unchanged, but for the agent's own keys, which are known by name:

- `role_info` and `assigned_ranks`, read in a round that has lost a member, are answered with stand-ins of the right
  form. The workers start, and a tenth of a second later the agent sees the change and re-forms.
- the exit barrier's counter marks this node as finished, so that the others go on without it if they have to, and its
  wait also ends when nobody is left who could end it, or who counted as the last and died before it said so.

Queues and `list_keys` work here but not through a `PrefixStore`: torch does not forward them to a Python store.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from lattice_rdzv import _core
from lattice_rdzv.errors import LeftError, RendezvousError, StoreTimeoutError
from lattice_rdzv.torch.errors import as_store_error

if TYPE_CHECKING:
    # torch exports it at run time and not in its types.
    from torch._C._distributed_c10d import Store
else:
    from torch.distributed import Store

logger = logging.getLogger("lattice_rdzv.torch")

# The agent's own keys (torch/distributed/elastic/agent/server/api.py and utils/store.py; the same from 2.6 to 2.15).
ROLE_INFO = "torchelastic/role_info/"
ASSIGNED_RANKS = "torchelastic/assigned_ranks/"
EXIT_BARRIER_COUNT = "torchelastic/agent/terminal_state/num_members"
EXIT_BARRIER_FULL = "torchelastic/agent/terminal_state/last_member"

# How often the last wait looks whether anybody is left to wait for, once a change was told: at most once a second, and
# less often in a large round, since a look reads a record of every node.
_LOOK_SECONDS = 1.0
_LOOK_SECONDS_PER_NODE = 1.0 / 50.0
# And whether all have come to it while no change was told: one key, but every node reads it.
_COUNT_SECONDS = 10.0
# Whatever the service needs for one answer, so that a look never takes the place of the wait.
_LOOK_LIMIT_SECONDS = 2.0

# What the core says of a round's plan that was removed, since the run has moved on; there is no class for it.
_PLAN_IS_GONE = "is gone: the run has moved on"


class LatticeStore(Store):
    """torch's whole store surface over the store of one round.

    Waits for `timeout` (300 s, `set_timeout`), retrying whatever the network does until then, and then raises
    `torch.distributed.DistStoreError` with `timeout` in its message. Every write applies once.

    Whoever wraps it in a `PrefixStore` must hold on to it: torch keeps only the C++ half alive.
    """

    if TYPE_CHECKING:
        # torch's own types have the setter only.
        @property
        def timeout(self) -> timedelta: ...

    def __init__(self, store: _core.Store, node: _core.Node, *, rank: int, size: int, round_number: int) -> None:
        super().__init__()
        self._store = store
        self._node = node
        self._rank = rank
        self._size = size
        self._round_number = round_number
        self._role: tuple[str, int] | None = None
        self._stood_in = False
        self._asked = False
        self._barrier_full = False
        # torch holds only the C++ half of a clone, too.
        self._clones: list[LatticeStore] = []
        self.on_local_size: Callable[[int], None] | None = None
        """Told how many workers this agent has, as soon as the agent says so."""

    # --- what the handler asks when the agent is done

    @property
    def asked_for_exit_barrier(self) -> bool:
        """Whether this agent's workers have all succeeded, as far as the exit barrier tells."""
        return self._asked

    def exit_barrier_full(self, *, timeout_seconds: float) -> bool:
        """Whether every agent of the round has asked for the exit barrier: by what the service says, where this agent
        did not hear the end of it."""
        if self._asked and not self._barrier_full:
            try:
                keys = [EXIT_BARRIER_FULL, EXIT_BARRIER_COUNT]
                full, count = self._store.get_now(keys, timeout_seconds=timeout_seconds)
            except RendezvousError:
                return False
            self._barrier_full = full is not None or (count is not None and int(count) >= self._size)
        return self._barrier_full

    # --- torch.distributed.Store

    def set(self, key: str, value: str | bytes) -> None:
        """Puts a value."""
        content = _bytes(value)
        if key == f"{ROLE_INFO}{self._rank}":
            self._role = _role(content)
            if self._role is not None and self.on_local_size is not None:
                self.on_local_size(self._role[1])
        try:
            self._store.set(key, content, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            if self._is_over(error, [key]):
                return
            raise as_store_error(error) from None

    def get(self, key: str) -> bytes:
        """Waits for a key and returns its value."""
        agents = _are_exchanged([key])
        try:
            value = self._store.get(key, timeout_seconds=self._timeout_seconds(), until_change=agents)
        except RendezvousError as error:
            if not self._is_over(error, [key]):
                raise as_store_error(error) from None
            value = None
        return self._stand_in(key) if value is None else value

    def add(self, key: str, value: int) -> int:
        """Adds to a counter and returns its new value."""
        at_exit = key == EXIT_BARRIER_COUNT
        if at_exit:
            # Also if the call fails: the workers have succeeded, and the service may have counted it.
            self._asked = True
        try:
            count = self._store.add(key, value, timeout_seconds=self._timeout_seconds(), finished=at_exit)
        except RendezvousError as error:
            raise as_store_error(error) from None
        if at_exit:
            self._barrier_full = count >= self._size
        return count

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        """Puts `desired_value` if the key holds `expected_value`, or is absent and that is empty; returns what it
        holds afterwards."""
        expected, desired = _bytes(expected_value), _bytes(desired_value)
        try:
            return self._store.compare_set(key, expected, desired, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all of the keys are there."""
        try:
            return self._store.check(list(keys), timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits for all of the keys, for at most `timeout` (default: the store's)."""
        limit_seconds = self._timeout_seconds() if timeout is None else timeout.total_seconds()
        names = list(keys)
        try:
            if names == [EXIT_BARRIER_FULL]:
                self._wait_for_the_others(limit_seconds)
            elif names:
                self._store.multi_get(names, timeout_seconds=limit_seconds)
        except RendezvousError as error:
            raise as_store_error(error) from None

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Waits for all of the keys and returns their values."""
        names = list(keys)
        agents = _are_exchanged(names)
        try:
            values = self._store.multi_get(names, timeout_seconds=self._timeout_seconds(), until_change=agents)
        except RendezvousError as error:
            if not self._is_over(error, names):
                raise as_store_error(error) from None
            values = [None] * len(names)
        return [self._stand_in(name) if value is None else value for name, value in zip(names, values, strict=True)]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Puts many values."""
        items = [(key, _bytes(value)) for key, value in zip(keys, values, strict=True)]
        try:
            self._store.multi_set(items, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            if self._is_over(error, list(keys)):
                return
            raise as_store_error(error) from None

    def append(self, key: str, value: str | bytes) -> None:
        """Appends to a value."""
        try:
            self._store.append(key, _bytes(value), timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def delete_key(self, key: str) -> bool:
        """Deletes a key; whether there was one."""
        try:
            return self._store.delete(key, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def num_keys(self) -> int:
        """How many keys there are."""
        try:
            return self._store.count(timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    # The names by which a `PrefixStore` calls the two.
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def has_extended_api(self) -> bool:
        """Whether `append`, `multi_get` and `multi_set` are there."""
        return True

    def queue_push(self, key: str, value: str | bytes) -> None:
        """Puts a value at the end of a queue."""
        try:
            self._store.queue_push(key, _bytes(value), timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Takes the first value of a queue; if there is none, waits for one with `block` or raises."""
        try:
            value = self._store.queue_pop(key, block=block, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None
        if value is None:
            # A class of its own since 2.8.
            empty: type[Exception] = getattr(dist, "QueueEmptyError", dist.DistStoreError)
            raise empty(f"the queue is empty: {key}")
        return value

    def queue_len(self, key: str) -> int:
        """How many values a queue holds."""
        try:
            return self._store.queue_len(key, timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def list_keys(self) -> list[str]:
        """The keys."""
        try:
            return self._store.list(timeout_seconds=self._timeout_seconds())
        except RendezvousError as error:
            raise as_store_error(error) from None

    def clone(self) -> LatticeStore:
        """Another store over the same keys, with a time-out of its own."""
        clone = LatticeStore(self._store, self._node, rank=self._rank, size=self._size, round_number=self._round_number)
        clone.set_timeout(self.timeout)
        self._clones.append(clone)
        return clone

    def __repr__(self) -> str:
        return f"<LatticeStore of round {self._round_number}, rank {self._rank} of {self._size}>"

    # --- what is the agent's own

    def _timeout_seconds(self) -> float:
        return float(self.timeout.total_seconds())

    def _is_over(self, error: RendezvousError, keys: Sequence[str]) -> bool:
        # The session has ended, which the agent learns a tenth of a second after its workers have started; before that
        # an error would end the job.
        return isinstance(error, LeftError) and _are_exchanged(keys) and self._node.num_nodes_waiting() > 0

    def _wait_for_the_others(self, limit_seconds: float) -> None:
        deadline = time.monotonic() + limit_seconds
        between_seconds = max(_LOOK_SECONDS, self._size * _LOOK_SECONDS_PER_NODE)
        changed = False
        while True:
            left_seconds = deadline - time.monotonic()
            # Or all would look at the same moment, that of the change.
            look_seconds = (between_seconds if changed else _COUNT_SECONDS) * random.uniform(1.0, 1.5)
            wait_seconds = max(0.0, min(left_seconds, look_seconds))
            try:
                full = self._store.get(EXIT_BARRIER_FULL, timeout_seconds=wait_seconds, until_change=not changed)
            except StoreTimeoutError:
                if left_seconds <= look_seconds:
                    raise
            else:
                if full is not None:
                    self._barrier_full = True
                    return
                changed = True
                continue
            if self.exit_barrier_full(timeout_seconds=_LOOK_LIMIT_SECONDS):
                logger.info("round %d: all have come to the exit, and the last did not say so", self._round_number)
                return
            if changed and self._nobody_is_left():
                logger.info("round %d: nobody is left to wait for at the exit", self._round_number)
                return

    def _nobody_is_left(self) -> bool:
        if self._node.closed is not None:
            return True
        try:
            return not self._node.unfinished()
        except RendezvousError as error:
            # No member of a round whose plan was removed is in it any more. Anything else says that the service is away:
            # then nobody can be said to be gone.
            return type(error) is RendezvousError and _PLAN_IS_GONE in str(error)

    def _stand_in(self, key: str) -> bytes:
        role, local_size = self._role or ("default", 1)
        if not self._stood_in:
            self._stood_in = True
            change = self._node.change
            logger.info(
                "round %d is over before its workers have started (%s); they start all the same, because the agent "
                "can re-form only from there",
                self._round_number,
                change.why if change else "the run is closed",
            )
        rank = int(key.rpartition("/")[2])
        if key.startswith(ROLE_INFO):
            return json.dumps({"role": role, "rank": rank, "local_world_size": local_size}).encode()
        first, count = rank * local_size, self._size * local_size
        return json.dumps([first, count, first, count]).encode()


def _are_exchanged(keys: Sequence[str]) -> bool:
    # What agents tell each other before their workers start.
    return bool(keys) and all(key.startswith((ROLE_INFO, ASSIGNED_RANKS)) for key in keys)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _role(content: bytes) -> tuple[str, int] | None:
    try:
        info = json.loads(content)
        return str(info["role"]), int(info["local_world_size"])
    except (ValueError, KeyError, TypeError):
        return None
