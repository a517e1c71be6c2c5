"""Rendezvous for elastic jobs: gives each node its rank and its world, and reports every change of the world.

    import lattice_rdzv

    with lattice_rdzv.join("my-run", nnodes="2:4") as run:
        while True:
            world = run.next_world()  # blocks until a world with this node forms
            print(f"round {world.round}: rank {world.rank} of {world.size}, master at {world.master_address}")
            if train(world, until=lambda: run.changing):  # reading `changing` is cheap
                run.close("succeeded")
                break
            print(run.change)  # for example lost or new nodes

Settings that are not passed are read from the environment: `LATTICE_RDZV_ENDPOINTS`, `LATTICE_RDZV_ID`, `LATTICE_NNODES`
and others. The end of the `with` block leaves the run, but does not close it. `world.store` is a key-value store of one
round, and `run.store` is one that outlives rounds. All errors are subclasses of `RendezvousError`.

Without an etcd, use `with lattice_rdzv.serve() as server:`, which runs an embedded server at `server.endpoint`.
`lattice_rdzv.aio` is the version of this API for asyncio and trio. `torchrun --rdzv-backend lattice` uses the same native core.
"""

from lattice_rdzv import errors
from lattice_rdzv._core import Change, Closed, Member, __version__
from lattice_rdzv._run import Run, join
from lattice_rdzv._serve import Server, serve
from lattice_rdzv._status import status
from lattice_rdzv._store import Store
from lattice_rdzv._world import World
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
    "Closed",
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
    "status",
]

# The modules that define them are private. A pickle and a traceback name this one.
for _public in (Run, Server, Store, World, join, serve, status):
    _public.__module__ = __name__
del _public
