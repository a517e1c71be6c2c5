"""Groups of gloo: forms the default process group anew for each world, and breaks its connections.

A fresh group is as fast as `torch.distributed._reconfigure`, and steadier. The number in torch's default name of a group
must be equal on all members, but diverges after an attempt that failed, so it is set to 0 before each attempt. Each
`init_process_group` also wraps `sys.excepthook` once more, which `drop` undoes.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from lattice_rdzv.torch.elastic.connecting import Breaker, connecting, limit_is_fixed
from lattice_rdzv.torch.elastic.sockets import GroupSockets

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
else:
    from torch.distributed import Store

# gloo's errors name its source files or itself. torch's own errors of stores and sockets have classes.
_GLOO = "gloo"
# Connects at the first use of a pair of ranks, so that the connections would not be known.
_LAZY = "TORCH_GLOO_LAZY_INIT"
# How often gloo tries to connect to a rank that has put its address and is gone, each time with the whole timeout.
_CONNECT_ATTEMPTS = 5


class GlooGroup:
    """One group, with its connections."""

    def __init__(self) -> None:
        self._sockets = GroupSockets()
        self._excepthook = sys.excepthook
        self._store: Store | None = None
        self._broken = Breaker()

    def break_waits(self) -> None:
        """Shuts down the connections that exist now."""
        self._broken.set()
        self._sockets.shut_down()

    def form(self, store: Store, *, rank: int, size: int, timeout: timedelta, pause: timedelta) -> None:
        """Makes this the default process group. `Group.form` describes the arguments."""
        os.environ.pop(_LAZY, None)
        # torch keeps only the C++ part alive.
        self._store = store
        _world().group_count = 0
        is_fixed = limit_is_fixed()
        limit = pause if is_fixed else timeout / _CONNECT_ATTEMPTS
        with connecting(self._broken, timeout) if is_fixed else nullcontext():
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        self._sockets.find()
        self._set_limit(timeout)

    def formed(self, timeout: timedelta) -> None:
        """Sets the time limit of all groups, and records the connections of those that the program has made."""
        self._sockets.freeze()
        self._set_limit(timeout)

    def _set_limit(self, timeout: timedelta) -> None:
        # The name up to torch 2.14 or so; later versions warn about it.
        set_timeout: Any = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
        for group in list(_world().pg_map):
            set_timeout(timeout, group)

    def drop(self) -> list[object]:
        """Breaks the connections and destroys all groups."""
        self._sockets.shut_down()
        self._sockets.forget()
        kept: list[object] = [self._store, *_world().pg_map]
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.excepthook = self._excepthook
        return kept


class Gloo:
    """The backend `gloo`."""

    def new_group(self) -> GlooGroup:
        """Returns a group that is not formed yet."""
        return GlooGroup()

    def is_group_failure(self, error: Exception) -> bool:
        """Returns whether the error is one of gloo's or of torch's stores."""
        return isinstance(error, dist.DistError) or _GLOO in str(error).lower()


def _world() -> Any:
    return distributed_c10d._world
