"""The backend `lattice` of torchrun, through the entry point group `torchrun.handlers` (torch 2.6 or newer).

    torchrun --rdzv-backend lattice --rdzv-id my-run --nnodes 2:4 train.py

Nothing here imports torch before a handler is asked for: torch loads entry points while it is being imported itself,
and `lattice-rdzv doctor` looks at this module where there is no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

__all__ = ["create_handler", "entry_point"]


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Makes a handler from torchrun's parameters: validates them, and connects to nothing.

    Raises:
        ValueError: A parameter is wrong, missing or unknown; as torch's own handlers do.
    """
    from lattice_rdzv.torch.handler import LatticeRendezvousHandler
    from lattice_rdzv.torch.settings import from_parameters

    return LatticeRendezvousHandler(from_parameters(parameters))


def entry_point() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What torch calls to learn the creator: always the same object, or a second registration would be refused."""
    return create_handler
