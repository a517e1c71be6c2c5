"""Which of torch's classes stands for which of ours: one table.

torch's agent, its launcher and whoever wrapped them know torch's classes only. The message is kept; raise with
`from None`, since the cause would repeat it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from lattice_rdzv import errors

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

# The first that fits.
_TORCHS: tuple[tuple[type[Exception], type[RendezvousError]], ...] = (
    (errors.ClosedError, RendezvousClosedError),
    (errors.LeftError, RendezvousClosedError),
    (errors.JoinTimeoutError, RendezvousTimeoutError),
    (errors.StoreTimeoutError, RendezvousTimeoutError),
    (errors.UnreachableError, RendezvousConnectionError),
    # By then the parameters were found to be in order by themselves: they disagree with the run's.
    (errors.SettingsError, RendezvousStateError),
    (errors.RecordError, RendezvousStateError),
    (errors.StoreResetError, RendezvousStateError),
    (errors.OutcomeUnknownError, RendezvousStateError),
    # The port to serve on could not be bound.
    (OSError, RendezvousConnectionError),
)


def as_torch_error(error: Exception) -> RendezvousError:
    """What a rendezvous handler raises for one of our errors."""
    for ours, torchs in _TORCHS:
        if isinstance(error, ours):
            return torchs(str(error))
    return RendezvousError(str(error))


def raises_store_errors(call: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
    """For a call of a `torch.distributed.Store`: ours are raised as `DistStoreError`."""

    @functools.wraps(call)
    def translated(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        try:
            return call(*args, **kwargs)
        except errors.StoreTimeoutError as error:
            # torch looks for the word.
            raise dist.DistStoreError(f"timeout: {error}") from None
        except errors.RendezvousError as error:
            raise dist.DistStoreError(str(error)) from None

    return translated
