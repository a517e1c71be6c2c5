"""Gives each node of an elastic job its rank, its world, and word of every change.

    import lattice_rdzv

    with lattice_rdzv.join("my-run", nnodes="2:4") as run:
        while True:
            world = run.next_world()  # blocks until a world with this node in it has formed
            print(f"round {world.round}: rank {world.rank} of {world.size}, master at {world.master_address}")
            if train(world, until=lambda: run.changing):  # `changing` costs nothing: ask as often as you like
                run.close("succeeded")
                break
            print(run.change)  # who was lost, or who wants to come in

What is not passed comes from the environment: `LATTICE_RDZV_ENDPOINTS`, `LATTICE_RDZV_ID`, `LATTICE_NNODES` and the
others. Leaving the `with` block leaves the run and never closes it. `world.store` is a key-value space of that round,
`run.store` one that outlives rounds. Everything that goes wrong is a `RendezvousError`.

Without an etcd at hand, `with lattice_rdzv.serve() as server:` is one in this process' memory, at `server.endpoint`.
`lattice_rdzv.aio` is the same to be awaited; `torchrun --rdzv-backend lattice` uses the same core.
"""

from lattice_rdzv import errors
from lattice_rdzv._core import Change, Member, Store, World, __version__
from lattice_rdzv._run import Run, join
from lattice_rdzv._serve import Server, serve
from lattice_rdzv.errors import (
    ClosedError,
    JoinTimeoutError,
    LeftError,
    OutcomeUnknownError,
    RecordError,
    RendezvousError,
    SettingsError,
    StoreResetError,
    StoreTimeoutError,
    UnreachableError,
)

__all__ = [
    "Change",
    "ClosedError",
    "JoinTimeoutError",
    "LeftError",
    "Member",
    "OutcomeUnknownError",
    "RecordError",
    "RendezvousError",
    "Run",
    "Server",
    "SettingsError",
    "Store",
    "StoreResetError",
    "StoreTimeoutError",
    "UnreachableError",
    "World",
    "__version__",
    "errors",
    "join",
    "serve",
]
