"""A worker of `survive.py`: a small model under DDP. Each completed step of the optimizer is a line of JSON in a file.

The first argument is the way of surviving: `elastic` (this package, in the same process), `restart` (a worker of torchrun),
or `torchft` (its manager, in the same process).
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    # torch exports this name at run time, but not in its types.
    from torch._C._distributed_c10d import TCPStore
else:
    from torch.distributed import TCPStore

SAMPLES = 64
FEATURES = 8
STEP_SECONDS = 0.005


def main() -> None:
    """Trains until it is killed."""
    way, out, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def report(size: int) -> None:
        # One write of less than a page, so that lines of several processes never mix.
        with out.open("a") as lines:
            lines.write(json.dumps({"at": time.monotonic(), "name": name, "pid": os.getpid(), "size": size}) + "\n")

    {"elastic": elastic, "restart": restart, "torchft": torchft}[way](model, optimizer, report)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Trains one step with random samples."""
    loss = model(torch.randn(SAMPLES, FEATURES)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(STEP_SECONDS)


def elastic(model: nn.Module, optimizer: torch.optim.Optimizer, report: Callable[[int], None]) -> None:
    """Trains with the elastic loop of this package."""
    from lattice_rdzv.torch import elastic as loop

    state = loop.State(model=model, optimizer=optimizer)

    def train(world: loop.World, ddp: nn.Module) -> None:
        while True:
            world.begin_step()
            step(ddp, optimizer)
            state.advance(samples=SAMPLES * world.size)
            report(world.size)

    with loop.join(
        node_name=sys.argv[3],
        local_address="127.0.0.1",
        lease_ttl=int(os.environ["BENCH_LEASE_TTL"]),
        last_call_timeout=60,
        grow_delay=0.1,
    ) as job:
        job.run(state, train, build=lambda world: world.ddp(model))


def restart(model: nn.Module, optimizer: torch.optim.Optimizer, report: Callable[[int], None]) -> None:
    """Trains as a worker that torchrun restarts."""
    dist.init_process_group("gloo")
    ddp = nn.parallel.DistributedDataParallel(model)
    while True:
        step(ddp, optimizer)
        report(dist.get_world_size())


def torchft(model: nn.Module, optimizer: torch.optim.Optimizer, report: Callable[[int], None]) -> None:
    """Trains as a replica group of one process, as in torchft's own example."""
    from datetime import timedelta

    from torchft import Manager, Optimizer, ProcessGroupGloo
    from torchft.ddp import PureDistributedDataParallel

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        min_replica_size=1,
        load_state_dict=lambda state: model.load_state_dict(state),
        state_dict=lambda: model.state_dict(),
        replica_id=sys.argv[3],
        store_addr="127.0.0.1",
        store_port=store.port,
        rank=0,
        world_size=1,
        lighthouse_addr=os.environ["TORCHFT_LIGHTHOUSE"],
        timeout=timedelta(seconds=10),
        hostname="127.0.0.1",
    )
    # torchft's other class fails an assertion after a failure with torch 2.15 (`fut._fut` in its communication hook).
    ddp = PureDistributedDataParallel(manager, model)
    wrapped = Optimizer(manager, optimizer)
    while True:
        before = manager.current_step()
        step(ddp, wrapped)
        if manager.current_step() > before:
            report(manager.num_participants())


if __name__ == "__main__":
    main()
