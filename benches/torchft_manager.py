"""torchft's part of the race, if torchft is installed: N managers form a quorum at one lighthouse.

A node is a manager, like the manager in the first process of each of torchft's replica groups. It is created and connected to
the lighthouse before the gate opens, as c10d's handler is to its store, and then requests a quorum. After the response it can
begin to train, because it knows its rank, the size, and the addresses of the other nodes.

The other contenders do more. Their agents also exchange the workers' ranks, which torchft does not have, and lattice keeps all
records of the run and a store for the job, whereas a lighthouse keeps only the last quorum. The race includes no process
groups, which every worker builds afterwards.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from serving import serving

LIGHTHOUSE = """
import signal, sys
from torchft.coordination import LighthouseServer
server = LighthouseServer(bind="127.0.0.1:0", min_replicas=int(sys.argv[1]))
print(server.address(), flush=True)
signal.pause()
"""
CONNECT = timedelta(seconds=60)
HEARTBEAT = timedelta(milliseconds=100)  # torchft's own default


def is_installed() -> bool:
    """Returns whether torchft is installed."""
    return importlib.util.find_spec("torchft") is not None


@contextmanager
def lighthouse(nodes: int) -> Iterator[str]:
    """Runs a lighthouse that waits for this number of managers, in a separate process, and yields its address."""
    command = [sys.executable, "-c", LIGHTHOUSE, str(nodes)]
    with serving(command) as address:
        yield address


def make_manager(address: str, node: int, nodes: int, limit_seconds: float) -> Callable[[], None]:
    """Creates and connects a manager. The returned function requests the quorum and waits for it."""
    from torchft.coordination import ManagerClient, ManagerServer

    server = ManagerServer(
        replica_id=f"node-{node}",
        lighthouse_addr=address,
        hostname="127.0.0.1",
        bind="127.0.0.1:0",
        # The store of the group's own workers, which is not used here.
        store_addr=f"127.0.0.1:{node + 1}",
        world_size=1,
        heartbeat_interval=HEARTBEAT,
        connect_timeout=CONNECT,
        quorum_retries=0,
    )
    client = ManagerClient(server.address(), connect_timeout=CONNECT)

    def join_quorum() -> None:
        quorum = client._quorum(
            group_rank=0,
            step=0,
            checkpoint_metadata="",
            shrink_only=False,
            timeout=timedelta(seconds=limit_seconds),
            commit_failures=0,
            init_sync=False,
        )
        if quorum.replica_world_size != nodes:
            raise RuntimeError(f"a quorum of {quorum.replica_world_size} of {nodes} managers")
        # The client needs its server, which ends when there is no reference to it.
        assert server.address()

    return join_quorum
