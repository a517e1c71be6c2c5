"""Maps the exceptions of this package to those of torch.

torch's agent and launcher, and programs that use them, handle only torch's classes. The message is kept. Raise the result
with `from None`, because the cause would repeat the message.
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

# The first match applies.
_TORCHS: tuple[tuple[type[Exception], type[RendezvousError]], ...] = (
    (errors.ClosedError, RendezvousClosedError),
    (errors.LeftError, RendezvousClosedError),
    (errors.JoinTimeoutError, RendezvousTimeoutError),
    (errors.StoreTimeoutError, RendezvousTimeoutError),
    (errors.UnreachableError, RendezvousConnectionError),
    # The parameters were already validated, so they differ from those of the run.
    (errors.SettingsError, RendezvousStateError),
    (errors.RecordError, RendezvousStateError),
    (errors.StoreResetError, RendezvousStateError),
    (errors.OutcomeUnknownError, RendezvousStateError),
    # The port could not be bound.
    (OSError, RendezvousConnectionError),
)


def as_torch_error(error: Exception) -> RendezvousError:
    """Returns the exception that a rendezvous handler raises for an error of this package."""
    for ours, torchs in _TORCHS:
        if isinstance(error, ours):
            return torchs(str(error))
    return RendezvousError(str(error))


def raises_store_errors(call: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
    """Decorates a method of a `torch.distributed.Store` to raise `DistStoreError` for errors of this package."""

    @functools.wraps(call)
    def translated(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        try:
            return call(*args, **kwargs)
        except errors.StoreTimeoutError as error:
            # torch searches for this word.
            raise dist.DistStoreError(f"timeout: {error}") from None
        except errors.RendezvousError as error:
            raise dist.DistStoreError(str(error)) from None

    return translated
