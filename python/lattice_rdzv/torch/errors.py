"""Which of torch's classes stands for which of ours: one table.

torch's agent, its launcher and whoever wrapped them know torch's classes only. The message is kept; raise with
`from None`, since the cause would repeat it.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from lattice_rdzv import errors

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


def as_store_error(error: errors.RendezvousError) -> Exception:
    """What a `torch.distributed.Store` raises for one of our errors: torch looks for the word `timeout` in some."""
    if isinstance(error, errors.StoreTimeoutError):
        return dist.DistStoreError(f"timeout: {error}")
    return dist.DistStoreError(str(error))
