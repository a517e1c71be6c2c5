"""Exceptions of the elastic loop."""

from __future__ import annotations

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

__all__ = ["StateLost", "WorldChanged"]


class WorldChanged(RendezvousError):
    """The world has ended, so a collective of it was ended, too. `change` names the reason.

    `Job.run` handles this exception: it forms the next world and calls the training function again. A training function
    that catches it must raise it again, and must not call `optimizer.step()` before.
    """

    def __init__(self, change: _core.Change) -> None:
        super().__init__(change)
        self.change: _core.Change = change

    def __str__(self) -> str:
        return f"the world of round {self.change.round} has ended ({self.change.kind}): {self.change.why}"


class StateLost(RendezvousError):
    """No member of the world has a valid state, so none can send it to the others.

    Every member of the world raises it. Load a checkpoint, call `State.restored`, and then `Job.run` again.
    """
