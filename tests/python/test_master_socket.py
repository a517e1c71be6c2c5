"""The port of rank 0 stays bound from before it is published until the program serves on it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import warnings
import weakref
from datetime import timedelta

import pytest
from conftest import JoinNode
from harness.ports import free_port
from harness.service import Service
from harness.together import together

import lattice_rdzv
from lattice_rdzv import aio

# Another program, with each option that can share a port.
BIND = """
import socket, sys
for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as other:
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            other.bind(("", int(sys.argv[1])))
            other.listen()
        except OSError as error:
            print(error.errno)
        else:
            print("bound")
"""


def attempts(port: int) -> set[str]:
    """Lets another program bind this port with each option. Returns the set of results: `bound` or an error number."""
    return set(
        subprocess.run(
            [sys.executable, "-c", BIND, str(port)], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_held_port_cannot_be_taken_until_the_program_closes_it(join: JoinNode) -> None:
    world = join("node-1", nnodes=1).next_world(hold_port=True)
    assert attempts(world.master_port) == {"98"}
    with world.master_socket() as taken:
        assert taken.getsockname()[1] == world.master_port
        assert not taken.get_inheritable()
        assert attempts(world.master_port) == {"98"}
        # The socket listens since before the world was known.
        with socket.create_connection((world.master_address, world.master_port), timeout=10) as client:
            taken.settimeout(10)
            accepted, _ = taken.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
        with pytest.raises(lattice_rdzv.RendezvousError, match="no socket is held"):
            world.master_socket()
    assert "bound" in attempts(world.master_port)


def test_port_is_free_and_no_socket_is_held_by_default(join: JoinNode) -> None:
    world = join("node-1", nnodes=1).next_world()
    assert "bound" in attempts(world.master_port)
    with pytest.raises(lattice_rdzv.RendezvousError, match="hold_port=True"):
        world.master_socket()


def test_only_rank_0_holds_the_port(join: JoinNode) -> None:
    runs = [join("node-1"), join("node-2")]
    worlds = together(*(lambda run=run: run.next_world(hold_port=True) for run in runs))
    first, second = sorted(worlds, key=lambda world: world.rank)
    with pytest.raises(lattice_rdzv.RendezvousError, match="only rank 0"):
        second.master_socket()
    first.master_socket().close()


def test_fixed_port_is_held_as_well(join: JoinNode) -> None:
    port = free_port()
    world = join("node-1", nnodes=1, port=port).next_world(hold_port=True)
    assert world.master_port == port
    assert attempts(port) == {"98"}
    with world.master_socket() as taken:
        assert taken.getsockname()[1] == port


def test_port_of_the_program_cannot_be_held(join: JoinNode) -> None:
    with pytest.raises(ValueError, match=r"`hold_port`.*29500"):
        join("node-1", nnodes=1).next_world(port=29500, hold_port=True)


def test_leaving_closes_the_socket(join: JoinNode) -> None:
    run = join("node-1", nnodes=1)
    world = run.next_world(hold_port=True)
    run.leave()
    assert "bound" in attempts(world.master_port)
    with pytest.raises(lattice_rdzv.RendezvousError, match="when this node leaves"):
        world.master_socket()


def test_next_world_has_another_socket_and_closes_the_earlier_one(join: JoinNode) -> None:
    first, second = join("node-1", nnodes="1:2"), None
    earlier = first.next_world(hold_port=True)
    second = join("node-2", nnodes="1:2")
    now, _ = together(lambda: first.next_world(hold_port=True), lambda: second.next_world(hold_port=True))
    assert (earlier.size, now.size) == (1, 2)
    with pytest.raises(lattice_rdzv.RendezvousError, match="no socket is held"):
        earlier.master_socket()
    with now.master_socket() as taken:
        assert taken.getsockname()[1] == now.master_port


def test_dropping_the_run_closes_the_socket_that_was_not_taken(etcd: Service, run_id: str) -> None:
    run = lattice_rdzv.join(run_id, nnodes=1, endpoint=etcd.endpoint, node_name="node-1", lease_ttl=3)
    world = run.next_world(hold_port=True)
    dropped = weakref.ref(run)
    del run
    gc.collect()
    assert dropped() is None
    assert "bound" in attempts(world.master_port)


def test_neither_a_forked_child_nor_a_started_program_keeps_the_port(join: JoinNode) -> None:
    run = join("node-1", nnodes=1)
    world = run.next_world(hold_port=True)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 and newer warn about threads, which the child does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            try:
                world.master_socket()
            except lattice_rdzv.RendezvousError:
                # Ends when the parent closes its end.
                os.read(reading, 1)
                os._exit(0)
        finally:
            os._exit(1)
    program = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
    )
    try:
        world.master_socket().close()
        assert "bound" in attempts(world.master_port)
    finally:
        program.communicate()
        os.close(writing)
        os.close(reading)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_asyncio_holds_the_port_too(etcd: Service, run_id: str) -> None:
    async def main() -> None:
        async with await aio.join(run_id, nnodes=1, endpoint=etcd.endpoint, node_name="node-1", lease_ttl=3) as run:
            world = await run.next_world(hold_port=True)
            assert attempts(world.master_port) == {"98"}
            world.master_socket().close()
            assert "bound" in attempts(world.master_port)

    asyncio.run(main())


def test_torch_serves_on_the_held_socket(join: JoinNode) -> None:
    distributed = pytest.importorskip("torch.distributed")
    world = join("node-1", nnodes=1).next_world(hold_port=True)
    store = distributed.TCPStore(
        world.master_address,
        world.master_port,
        is_master=True,
        master_listen_fd=world.master_socket().detach(),
        wait_for_workers=False,
        timeout=timedelta(seconds=20),
        use_libuv=False,
    )
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert attempts(world.master_port) == {"98"}
