"""The backend `lattice` for torchrun, registered in the entry point group `torchrun.handlers` (torch 2.6 or newer).

    torchrun --rdzv-backend lattice --rdzv-id my-run --nnodes 2:4 train.py

This module imports torch only when a handler is requested, because torch loads entry points while it is being imported,
and `lattice-rdzv doctor` imports this module without torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

    from lattice_rdzv.torch.handler import LatticeRendezvousHandler

__all__ = ["LatticeRendezvousHandler", "create_handler", "entry_point"]

_logger = logging.getLogger("lattice_rdzv.torch")


def __getattr__(name: str) -> object:
    if name != "LatticeRendezvousHandler":
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    try:
        from lattice_rdzv.torch.handler import LatticeRendezvousHandler
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        raise ModuleNotFoundError(
            f"`{name}` needs torch 2.6 or newer, which is not installed; run `pip install 'lattice-rdzv[torch]'`",
            name=error.name,
        ) from None
    return LatticeRendezvousHandler


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Validates torchrun's parameters and returns a handler. Does not connect.

    Raises:
        ValueError: A parameter is wrong, missing or unknown, as with torch's own handlers.
    """
    from lattice_rdzv import _logs
    from lattice_rdzv.torch import launcher
    from lattice_rdzv.torch.handler import LatticeRendezvousHandler
    from lattice_rdzv.torch.settings import from_parameters

    if not launcher.is_torchrun():
        return LatticeRendezvousHandler(from_parameters(parameters))
    _logs.is_of_a_command()
    try:
        return LatticeRendezvousHandler(from_parameters(parameters))
    except ValueError as error:
        # torchrun prints a traceback of some 40 lines, whose last line has the message.
        _logger.error("%s", error)
        raise


def entry_point() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Returns the creator. torch calls this function, and rejects a second registration with another object."""
    return create_handler
