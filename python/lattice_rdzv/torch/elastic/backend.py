"""The interface of torch's backends for the elastic loop: it forms a group that can be broken, and recognizes its errors.

Each backend is one module with a class that implements `Backend`. gloo is the only one. NCCL would break its waits by
`abort` from the interrupt's thread, and might form the next group by `torch.distributed._reconfigure`, because its
communicators are expensive. NCCL was never tested here with GPUs, so `backend_of` refuses it: see docs/testing.md.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
else:
    from torch.distributed import Store


class Group(Protocol):
    """The default process group of one world."""

    def break_waits(self) -> None:
        """Ends the waits inside torch. Called several times, from another thread, also while the group is formed."""

    def form(self, store: Store, *, rank: int, size: int, timeout: timedelta, pause: timedelta) -> None:
        """Makes this the default process group.

        Args:
            store: Store of this world alone.
            rank: Rank of this process, from 0 to `size` - 1.
            size: Number of processes.
            timeout: Time limit for forming it, and for its collectives until `formed`.
            pause: Time limit for its collectives where the backend cannot change a limit later. Longer than any pause of a
                rank between two collectives.

        Raises:
            RuntimeError: The group was not formed within the limit, or its waits were broken.
        """

    def formed(self, timeout: timedelta) -> None:
        """Sets the time limit of the collectives of this group and of the further groups that the program has made."""

    def drop(self) -> list[object]:
        """Destroys the group, as far as that does not wait, and returns what must be kept until its collectives have
        ended."""


class Backend(Protocol):
    """A backend of torch."""

    def new_group(self) -> Group:
        """Returns a group that is not formed yet."""

    def is_group_failure(self, error: Exception) -> bool:
        """Returns whether the error comes from a broken connection or a timeout of the group, and not from the program."""


def backend_of(name: str) -> Backend:
    """Returns the backend of this name.

    Raises:
        ValueError: The elastic loop does not support the backend.
    """
    if name == "gloo":
        from lattice_rdzv.torch.elastic.gloo import Gloo

        return Gloo()
    raise ValueError(
        f"`group_backend` must be `gloo`, but is `{name}`; for another backend, use torchrun with "
        "`--rdzv-backend lattice`, which restarts all workers after a loss"
    )
