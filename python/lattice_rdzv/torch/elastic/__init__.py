"""Elastic training in which the surviving processes continue: the next world without a restart.

    from lattice_rdzv.torch import elastic

    state = elastic.State(model=model, optimizer=optimizer)

    def train(world, ddp):
        while state.step < 1000:
            world.begin_step()  # new nodes are let in here
            loss = loss_of(ddp, batch(state.samples, world.rank, world.size))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state.advance(samples=BATCH * world.size)

    with elastic.join("my-run", nnodes="2:4") as job:
        job.run(state, train, build=lambda world: world.ddp(model))

Each training process is a node of the run. When one is lost, the others end their collectives, form a new default process
group, make their states equal, and call `train` again, in the same processes. docs/survivors.md describes it.

This package imports torch.
"""

from lattice_rdzv.torch.elastic.errors import StateLost, WorldChanged
from lattice_rdzv.torch.elastic.job import Job, join
from lattice_rdzv.torch.elastic.state import State
from lattice_rdzv.torch.elastic.world import World

__all__ = ["Job", "State", "StateLost", "World", "WorldChanged", "join"]

for _public in (Job, State, StateLost, World, WorldChanged, join):
    _public.__module__ = __name__
del _public
