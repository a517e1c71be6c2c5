"""The exit barrier, at which agents whose workers have all succeeded wait for each other.

Problem: torch's agents increase a count and then wait for minutes for a key that the last agent puts, even if the missing
agent is gone or failed between the count and the key. Design: the count marks this node as finished, so that the other
nodes can continue without it. The wait also ends when no unfinished node is left, or when the count is complete.
`exit_barrier_timeout` of torch's agent limits every node, also the node that hosts the embedded server. If that node
stops waiting, it warns that the other nodes lose the server.
"""

from __future__ import annotations

import logging
import random
import time
from enum import Enum, auto

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError, StoreTimeoutError

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

# The agent's keys (torch/distributed/elastic/agent/server/api.py and utils/store.py, unchanged from 2.6 to 2.15).
EXIT_BARRIER_COUNT = "torchelastic/agent/terminal_state/num_members"
EXIT_BARRIER_FULL = "torchelastic/agent/terminal_state/last_member"

# How often the wait checks for unfinished nodes after a change was announced: at most once a second, and less often in a
# large round, because a check reads a record of every node.
_LOOK_SECONDS = 1.0
_LOOK_SECONDS_PER_NODE = 1.0 / 50.0
# How often the wait checks the count while no change was announced. It reads only one key, but every node reads it.
_COUNT_SECONDS = 10.0
# Each process needs its own random numbers: a forked child, or a program that seeds `random`, must not check at the same
# time as other processes.
_RANDOM = random.SystemRandom()
# Time limit of one check, so that a slow service does not delay the wait.
_LOOK_LIMIT_SECONDS = 2.0


class _Event(Enum):
    """An event that ends one wait at the barrier."""

    # The last agent has put its key.
    FULL = auto()
    # The world is about to change, or the run was closed.
    CHANGE = auto()
    # It is time to read which nodes have arrived.
    LOOK = auto()


class ExitBarrier:
    """The exit barrier of one agent in one round."""

    def __init__(self, store: _core.Store, node: _core.Node, *, size: int, round_number: int) -> None:
        self._store = store
        self._node = node
        self._size = size
        self._round_number = round_number
        self._asked = False
        self._full = False

    @property
    def asked(self) -> bool:
        """Whether this node has arrived."""
        return self._asked

    def is_full(self, *, timeout_seconds: float) -> bool:
        """Returns whether every agent of the round has arrived. Reads the service if this agent's wait did not complete."""
        if self._asked and not self._full:
            try:
                keys = [EXIT_BARRIER_FULL, EXIT_BARRIER_COUNT]
                full, count = self._store.get_now(keys, timeout_seconds=timeout_seconds).wait()
            except RendezvousError:
                return False
            self._full = full is not None or (count is not None and int(count) >= self._size)
        return self._full

    def add(self, amount: int, *, timeout_seconds: float) -> int:
        """Adds to the number of agents that have arrived, and returns it."""
        # Set even if the call fails, because the workers have succeeded, and the service may have applied the write.
        self._asked = True
        count = self._store.add(EXIT_BARRIER_COUNT, amount, timeout_seconds=timeout_seconds, finished=True).wait()
        self._full = count >= self._size
        return count

    def wait(self, *, timeout_seconds: float) -> None:
        """Waits for the other agents, as long as unfinished ones exist.

        Raises:
            StoreTimeoutError: Not all agents arrived within the limit.
        """
        deadline = time.monotonic() + timeout_seconds
        changed = False
        while True:
            match self._next_event(deadline, changed=changed):
                case _Event.FULL:
                    self._full = True
                    return
                case _Event.CHANGE:
                    changed = True
                case _Event.LOOK:
                    why = self._why_complete(changed=changed)
                    if why is not None:
                        logger.info("round %d: %s", self._round_number, why)
                        return
                case StoreTimeoutError() as error:
                    if self._node.hosts:
                        logger.warning(
                            "round %d: other nodes have not finished within %g s (`exit_barrier_timeout`); this node hosts "
                            "the embedded server and stops it, so their part of the job fails; pass a longer "
                            "`exit_barrier_timeout` to the agent, or use etcd or `lattice-rdzv serve`",
                            self._round_number,
                            timeout_seconds,
                        )
                    raise error

    def _next_event(self, deadline: float, *, changed: bool) -> _Event | StoreTimeoutError:
        """Waits for the key of the last agent, for a change of the world unless one was announced, or until the next look.
        Returns the error if the deadline ended the wait."""
        between_seconds = max(_LOOK_SECONDS, self._size * _LOOK_SECONDS_PER_NODE) if changed else _COUNT_SECONDS
        # Random, because otherwise all nodes would check at the moment of the change.
        look_seconds = between_seconds * _RANDOM.uniform(1.0, 1.5)
        left_seconds = deadline - time.monotonic()
        wait_seconds = max(0.0, min(left_seconds, look_seconds))
        try:
            full = self._store.get(EXIT_BARRIER_FULL, timeout_seconds=wait_seconds, until_change=not changed).wait()
        except StoreTimeoutError as error:
            return error if left_seconds <= look_seconds else _Event.LOOK
        return _Event.CHANGE if full is None else _Event.FULL

    def _why_complete(self, *, changed: bool) -> str | None:
        """Reads whether no other agent can arrive, and returns the reason."""
        if self.is_full(timeout_seconds=_LOOK_LIMIT_SECONDS):
            return "all agents have arrived at the exit barrier, but the last one did not announce it"
        if changed and self._nobody_is_left():
            return "no unfinished node is left at the exit barrier"
        return None

    def _nobody_is_left(self) -> bool:
        if self._node.closed is not None:
            return True
        try:
            return not self._node.unfinished().wait()
        except RendezvousError:
            # Without the service, it is unknown which nodes are left.
            return False
