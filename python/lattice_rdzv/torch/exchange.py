"""The worker rank exchange: agents share their worker counts and receive the workers' ranks before the workers start.

Problem: torch's agent runs this exchange outside of any `try`, and waits for minutes even if the agent that it waits for
is gone. No exception from the store makes it rendezvous again. Design: in a round that has lost a member, the store
returns placeholder values in the right form. The workers start, and a tenth of a second later the agent detects the
change and rendezvous again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

from lattice_rdzv import _core

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

# The agent's keys (torch/distributed/elastic/agent/server/api.py, unchanged from 2.6 to 2.15).
ROLE_INFO = "torchelastic/role_info/"
ASSIGNED_RANKS = "torchelastic/assigned_ranks/"


class Exchange:
    """The exchange of one agent in one round."""

    def __init__(self, node: _core.Node, *, rank: int, size: int, round_number: int) -> None:
        self._node = node
        self._rank = rank
        self._size = size
        self._round_number = round_number
        self._role: tuple[str, int] | None = None
        self._stood_in = False
        self.on_local_size: Callable[[int], None] | None = None
        """Called with the number of this agent's workers when the agent publishes it."""

    @property
    def is_used(self) -> bool:
        """Whether an agent of torch uses the round."""
        return self._role is not None

    def observe_put(self, key: str, content: bytes) -> None:
        """Observes a value that the agent puts."""
        if key == f"{ROLE_INFO}{self._rank}":
            self._role = _role(content)
            if self._role is not None and self.on_local_size is not None:
                self.on_local_size(self._role[1])

    def is_abandoned(self, keys: Sequence[str]) -> bool:
        """Returns whether the exchange of these keys is abandoned because the session has ended. The agent detects the end a
        tenth of a second after its workers have started. Before that, an error would end the job."""
        return are_exchanged(keys) and self._node.num_nodes_waiting() > 0

    def placeholder_value(self, key: str) -> bytes:
        """Returns a placeholder for a value that no agent will put."""
        role, local_size = self._role or ("default", 1)
        if not self._stood_in:
            self._stood_in = True
            change = self._node.change
            logger.info(
                "round %d ended before its workers started (%s); the workers start anyway, because the agent can rendezvous "
                "again only after that",
                self._round_number,
                change.why if change else "the run is closed",
            )
        rank = int(key.rpartition("/")[2])
        if key.startswith(ROLE_INFO):
            return json.dumps({"role": role, "rank": rank, "local_world_size": local_size}).encode()
        first, count = rank * local_size, self._size * local_size
        return json.dumps([first, count, first, count]).encode()


def are_exchanged(keys: Sequence[str]) -> bool:
    """Returns whether all of these keys belong to the exchange."""
    return bool(keys) and all(key.startswith((ROLE_INFO, ASSIGNED_RANKS)) for key in keys)


def _role(content: bytes) -> tuple[str, int] | None:
    try:
        info = json.loads(content)
        return str(info["role"]), int(info["local_world_size"])
    except (ValueError, KeyError, TypeError):
        return None
