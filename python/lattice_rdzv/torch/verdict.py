"""Decides how a handler's `shutdown` ends the node's part in a run.

torch calls `shutdown` after success, failure, timeouts, and Ctrl-C alike, and passes no reason. torch's documentation
also recommends it for the end of any program: `try: ... finally: handler.shutdown()`. The reason is therefore derived
from two facts. Only a full exit barrier means success, and only a `ChildFailedError` in flight means failure. In all
other cases the node leaves, and the other nodes continue.

The launchers of torch 2.6 to 2.15 do the same: a node without restarts left raises `ChildFailedError` and calls
`shutdown` in its `finally`; a signal skips `shutdown`; other exceptions describe the agent, not the job. The verdict
therefore does not depend on torch's version.
"""

from __future__ import annotations

import enum

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


class Barrier(enum.Enum):
    """The exit barrier of the last round, as this node knows it."""

    NO_ROUND = "this node has been in no round"
    NOT_ASKED = "this node has not arrived at the exit barrier"
    ASKED = "this node has arrived, and others are missing"
    FULL = "all nodes have arrived"


class Verdict(enum.Enum):
    """What `shutdown` does."""

    SUCCEEDED = "close the run as succeeded"
    FAILED = "close the run as failed"
    LEAVE = "leave the run"


def verdict(barrier: Barrier, in_flight: BaseException | None, *, on_node_failure: str) -> Verdict:
    """Returns what `shutdown` does while the exception `in_flight` is handled, if there is one."""
    if barrier is Barrier.FULL:
        return Verdict.SUCCEEDED
    # A node that has arrived at the barrier had workers that succeeded: the exception is not about this round.
    failed = barrier is Barrier.NOT_ASKED and isinstance(in_flight, ChildFailedError)
    return Verdict.FAILED if failed and on_node_failure == "close" else Verdict.LEAVE


def failure(error: BaseException | None) -> str:
    """Describes the worker failure that closes the run."""
    if not isinstance(error, ChildFailedError):
        return "a worker failed"
    rank, first = error.get_first_failure()
    how = f"exit code {first.exitcode}" if first.exitcode >= 0 else first.signal_name()
    return f"worker {rank} failed with {how}"
