"""Records the events of the handler with `torch.distributed.elastic.events`, as torch's c10d handler does.

torch discards them unless a program sets a handler of `logging` for the destination `dynamic_rendezvous`. Then a call costs
a walk of the stack, and otherwise one lookup.
"""

from __future__ import annotations

import os
import socket

from torch.distributed.elastic.events import construct_and_record_rdzv_event
from torch.distributed.elastic.events.api import NodeState

from lattice_rdzv import _core

__all__ = ["Events", "NodeState"]


class Events:
    """The events of one handler."""

    def __init__(self, settings: _core.Settings) -> None:
        self._settings = settings

    def record(
        self,
        method: str,
        message: str,
        state: NodeState = NodeState.RUNNING,
        *,
        rank: int | None = None,
        master_endpoint: str = "",
    ) -> None:
        """Records an event of a method of the handler. A failure is recorded with the traceback of the current exception."""
        construct_and_record_rdzv_event(
            name=f"LatticeRendezvousHandler.{method}",
            run_id=self._settings.run_id,
            message=message,
            node_state=state,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            master_endpoint=master_endpoint,
            rank=rank,
        )

    def failed(self, method: str, error: BaseException) -> None:
        """Records that a method raises this error."""
        self.record(method, f"{type(error).__name__}: {error}", NodeState.FAILED)
