"""torchft's side of the race, where it is installed: N managers that meet at one lighthouse.

A node is a manager, as torchft's first process of each replica group has one: made and connected to the lighthouse before
the gate, as c10d's handler is to its store. After it, it asks for a quorum. With the answer its training may begin: it has its
rank, the size, and where the others are. What is raced against is more: agents have also been through the exchange of their
workers' ranks, which torchft does not have, and each has a store of the run with all of the run's records, of which a
lighthouse keeps nothing but the last quorum. Not in it on either side: process groups, which every worker then builds.
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
    """Whether there is anything to race against."""
    return importlib.util.find_spec("torchft") is not None


@contextmanager
def lighthouse(nodes: int) -> Iterator[str]:
    """One that waits for so many managers, in a process of its own; its address."""
    command = [sys.executable, "-c", LIGHTHOUSE, str(nodes)]
    with serving(command) as address:
        yield address


def make_manager(address: str, node: int, nodes: int, limit_seconds: float) -> Callable[[], None]:
    """A manager that is connected; what is returned asks for the quorum and waits for it."""
    from torchft.coordination import ManagerClient, ManagerServer

    server = ManagerServer(
        replica_id=f"node-{node}",
        lighthouse_addr=address,
        hostname="127.0.0.1",
        bind="127.0.0.1:0",
        # The store of the group's own workers, which nobody asks here.
        store_addr=f"127.0.0.1:{node + 1}",
        world_size=1,
        heartbeat_interval=HEARTBEAT,
        connect_timeout=CONNECT,
        quorum_retries=0,
    )
    client = ManagerClient(server.address(), connect_timeout=CONNECT)

    def meet() -> None:
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
        # The client is of no use without its server, which ends when nobody holds it.
        assert server.address()

    return meet
