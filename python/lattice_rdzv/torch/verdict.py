"""Decides how a handler's `shutdown` ends the node's part in a run.

torch calls `shutdown` after success, failure, timeouts, and Ctrl-C alike, and passes no reason. torch's documentation
also recommends it for the end of any program: `try: ... finally: handler.shutdown()`. The reason is therefore derived
from the exit barrier and from the exception in flight. Only a full exit barrier means success. A `ChildFailedError` in
flight means failure: torchrun raises it for a node without restarts left. Up to torch 2.7, the agent calls `shutdown`
before torchrun raises; there, an agent that has started workers, has not arrived at the barrier, and raises nothing has
failed. In all other cases the node leaves, and the other nodes continue.
"""

from __future__ import annotations

import enum

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

TorchVersion = tuple[int, int]
"""Major and minor version of torch."""

TORCH_VERSION: TorchVersion = (int(torch.__version__.split(".")[0]), int(torch.__version__.split(".")[1]))
# Since this version, torchrun raises before it calls `shutdown`.
_RAISES_FIRST: TorchVersion = (2, 8)


class Progress(enum.Enum):
    """The progress of torch's agent in the last round, as far as this node knows."""

    NO_ROUND = "this node has been in no round"
    NO_AGENT = "no agent of torch uses the round"
    WORKERS = "the agent has started its workers"
    ARRIVED = "the workers have succeeded; others are missing at the exit barrier"
    ALL_ARRIVED = "all nodes have arrived at the exit barrier"


class Verdict(enum.Enum):
    """The action of `shutdown`."""

    SUCCEEDED = "close the run as succeeded"
    FAILED = "close the run as failed"
    LEAVE = "leave the run"


def verdict(
    progress: Progress,
    in_flight: BaseException | None,
    *,
    on_node_failure: str,
    torch_version: TorchVersion = TORCH_VERSION,
) -> Verdict:
    """Returns the action of `shutdown` while the exception `in_flight`, if any, is handled."""
    failed = isinstance(in_flight, ChildFailedError)
    match progress:
        case Progress.ALL_ARRIVED:
            return Verdict.SUCCEEDED
        case Progress.NO_ROUND | Progress.ARRIVED:
            # No worker has started, or all have succeeded: the exception is not about this round.
            failed = False
        case Progress.WORKERS:
            failed = failed or (in_flight is None and torch_version < _RAISES_FIRST)
        case Progress.NO_AGENT:
            pass
    return Verdict.FAILED if failed and on_node_failure == "close" else Verdict.LEAVE


def failure(error: BaseException | None) -> str:
    """Describes the worker failure that closes the run."""
    if not isinstance(error, ChildFailedError):
        return "a worker failed"
    rank, first = error.get_first_failure()
    how = f"exit code {first.exitcode}" if first.exitcode >= 0 else first.signal_name()
    return f"worker {rank} failed with {how}"
