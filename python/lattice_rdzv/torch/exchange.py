"""What agents tell each other before their workers start: how many each has, and who gets which ranks.

Problem: torch's agent exchanges both outside every `try`, for minutes, also when the one it waits for is gone; and no
exception of ours makes it re-form. Choice: in a round that has lost a member they are answered with stand-ins of the
right form. The workers start, and a tenth of a second later the agent sees the change and re-forms.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

from lattice_rdzv import _core

logger = logging.getLogger("lattice_rdzv.torch")

# The agent's own keys (torch/distributed/elastic/agent/server/api.py; the same from 2.6 to 2.15).
ROLE_INFO = "torchelastic/role_info/"
ASSIGNED_RANKS = "torchelastic/assigned_ranks/"


class Exchange:
    """One agent's part in it."""

    def __init__(self, node: _core.Node, *, rank: int, size: int, round_number: int) -> None:
        self._node = node
        self._rank = rank
        self._size = size
        self._round_number = round_number
        self._role: tuple[str, int] | None = None
        self._stood_in = False
        self.on_local_size: Callable[[int], None] | None = None
        """Told how many workers this agent has, as soon as the agent says so."""

    @property
    def is_used(self) -> bool:
        """Whether an agent of torch uses the round."""
        return self._role is not None

    def note(self, key: str, content: bytes) -> None:
        """Takes notice of what the agent puts."""
        if key == f"{ROLE_INFO}{self._rank}":
            self._role = _role(content)
            if self._role is not None and self.on_local_size is not None:
                self.on_local_size(self._role[1])

    def is_over(self, keys: Sequence[str]) -> bool:
        """Whether these keys need no service any more, where the session has ended: the agent learns that a tenth of a
        second after its workers have started, and before that an error would end the job."""
        return are_exchanged(keys) and self._node.num_nodes_waiting() > 0

    def stand_in(self, key: str) -> bytes:
        """What the agent reads instead of what nobody will put."""
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


def are_exchanged(keys: Sequence[str]) -> bool:
    """Whether all of these keys are of the exchange."""
    return bool(keys) and all(key.startswith((ROLE_INFO, ASSIGNED_RANKS)) for key in keys)


def _role(content: bytes) -> tuple[str, int] | None:
    try:
        info = json.loads(content)
        return str(info["role"]), int(info["local_world_size"])
    except (ValueError, KeyError, TypeError):
        return None
