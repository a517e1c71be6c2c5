"""One world, as the training function sees it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lattice_rdzv import _core
from lattice_rdzv import _world as plain
from lattice_rdzv.torch.elastic.errors import WorldChanged
from lattice_rdzv.torch.elastic.interrupt import Interrupt

if TYPE_CHECKING:
    # torch exports this name at run time, but not in its types.
    from torch._C._distributed_c10d import GradBucket
else:
    from torch.distributed import GradBucket


class Stopped(BaseException):
    """The process must end, and has completed its step. This is not an error, so that no `except Exception` catches it."""


class World:
    """A world whose default process group is formed, for the training function of `Job.run`."""

    def __init__(
        self, world: plain.World, interrupt: Interrupt, *, form_timeout: timedelta, stopping: Callable[[], bool]
    ) -> None:
        self._world = world
        self._interrupt = interrupt
        self._form_timeout = form_timeout
        self._stopping = stopping

    @property
    def rank(self) -> int:
        """Rank of this process, from 0 to `size - 1`. `torch.distributed.get_rank()` returns this rank, too."""
        return self._world.rank

    @property
    def size(self) -> int:
        """Number of processes. `torch.distributed.get_world_size()` returns this number, too."""
        return self._world.size

    @property
    def round(self) -> int:
        """Number of the round, which increases with each world of the run."""
        return self._world.round

    @property
    def why(self) -> str:
        """Reason why the world was formed."""
        return self._world.why

    @property
    def form_timeout(self) -> timedelta:
        """Time limit for further groups that `build` makes: `torch.distributed.new_group(..., timeout=world.form_timeout)`."""
        return self._form_timeout

    def begin_step(self) -> None:
        """Ends this world here if it has to end: to let new nodes in, because a member is gone, or because this process was
        asked to end. Costs one read of memory otherwise. Call it at the beginning of each step, or of every tenth step, and only
        where the progress is counted and nothing is half done.

        Raises:
            WorldChanged: The world changes.
        """
        if self._stopping():
            raise Stopped
        self._interrupt.check()
        if self._interrupt.growth is not None:
            raise WorldChanged(self._interrupt.growth)

    def wait(self, work: dist.Work) -> None:
        """Waits for a collective of the program, so that a change of the world can end the wait.

            world.wait(torch.distributed.all_reduce(loss, async_op=True))

        Args:
            work: The work of a collective that was started with `async_op=True`.

        Raises:
            WorldChanged: The world ended first. The tensors of the collective are undefined.
            RuntimeError: The collective failed.
        """
        self._interrupt.wait(work)

    def ddp(self, module: torch.nn.Module, **options: Any) -> DistributedDataParallel:
        """Returns `DistributedDataParallel(module, **options)`, whose `backward` a change of the world can end.

        It averages the gradients like DDP itself, by a communication hook. Do not register another hook.

        Args:
            module: The model.
            options: Arguments of `DistributedDataParallel`.
        """
        wrapped = DistributedDataParallel(module, **options)
        wrapped.register_comm_hook(None, _average(self._interrupt, wrapped.process_group))
        return wrapped

    def __repr__(self) -> str:
        return f"<lattice_rdzv.torch.elastic.World round={self.round} rank={self.rank} size={self.size}>"


def _average(interrupt: Interrupt, group: dist.ProcessGroup) -> Callable[[object, GradBucket], Future[torch.Tensor]]:
    def hook(_state: object, bucket: GradBucket) -> Future[torch.Tensor]:
        gradients = bucket.buffer().div_(group.size())
        work = dist.all_reduce(gradients, group=group, async_op=True)
        assert work is not None, "an asynchronous collective of a member returns its work"
        return interrupt.breakable(work, lambda tensors: tensors[0])

    # torch checks the annotations themselves, not their texts.
    hook.__annotations__ = {"_state": object, "bucket": GradBucket, "return": Future[torch.Tensor]}
    return hook


def describe(change: _core.Change) -> str:
    """Returns a change in words, for logs."""
    return f"{change.why} ({change.kind})"
