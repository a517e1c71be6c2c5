"""The workers' store, and the port on which it is served."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from harness.handlers import MakeHandler, form_round
from harness.ports import free_port
from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)


def test_workers_store_is_served_from_the_socket_that_was_published(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    ports = set()
    for _ in range(2):
        infos = form_round(first, second)
        places = {(place_of(info).master_addr, place_of(info).master_port) for info in infos}
        assert len(places) == 1
        address, port = places.pop()
        client = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        assert not client.check(["left-over"])
        client.set("left-over", "1")
        ports.add(port)
    assert first.use_agent_store
    assert len(ports) == 2


def test_workers_may_serve_their_store_themselves(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    handler = make()
    place = place_of(handler.next_rendezvous())
    assert not handler.use_agent_store
    server = TCPStore(place.master_addr, place.master_port, is_master=True, wait_for_workers=False)
    server.set("key", "value")


def test_port_can_be_fixed(make: MakeHandler) -> None:
    port = free_port()
    handler = make(port=port)
    for _ in range(2):
        assert place_of(handler.next_rendezvous()).master_port == port


def test_fixed_port_that_is_taken_is_named_by_rank_0(make: MakeHandler) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousConnectionError, match=rf"rank 0's agent .* port {port}.*in use"):
            make(port=port).next_rendezvous()


def test_only_rank_0_binds_a_fixed_port(make: MakeHandler) -> None:
    port = free_port()
    first, second = (make(name, port=port, min_nodes=2, max_nodes=2) for name in ("node-1", "node-2"))
    # Both agents are on this machine, where the port can be bound once.
    for _ in range(2):
        infos = form_round(first, second)
        assert {place_of(info).master_port for info in infos} == {port}
        client = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
        client.set("key", "value")


def test_fixed_port_is_free_while_no_node_has_rank_0(make: MakeHandler) -> None:
    port = free_port()
    waiting = make(port=port, min_nodes=2, max_nodes=2, join_timeout=2)
    with socket.create_server(("", port)), pytest.raises(RendezvousTimeoutError):
        waiting.next_rendezvous()


def test_open_files_are_raised_to_the_hard_limit_if_their_number_is_unknown(
    make: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        soft = hard // 2
    monkeypatch.setenv("TORCH_ELASTIC_WORKER_IDENTICAL", "1")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        make().next_rendezvous()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def place_of(info: RendezvousInfo) -> RendezvousStoreInfo:
    """Returns the address of the workers' store."""
    place = info.bootstrap_store_info
    assert place is not None
    return place
