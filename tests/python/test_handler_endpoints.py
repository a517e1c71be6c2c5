"""Endpoints without an etcd: the exception has the right class, names the endpoint, and is raised in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from harness.handlers import MakeHandler, is_alone
from harness.ports import free_port
from harness.silent import http_endpoint, silent_endpoint, tcp_store_endpoint
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
)

import lattice_rdzv


def test_refused_connection_is_an_error(make: MakeHandler) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    _is_unreachable(make(endpoint=endpoint, connect_timeout="2", is_host="0"), endpoint)


@pytest.mark.parametrize("wrong", [silent_endpoint, http_endpoint])
def test_server_that_is_not_etcd_is_an_error(
    make: MakeHandler, wrong: Callable[[], AbstractContextManager[str]]
) -> None:
    with wrong() as endpoint:
        _is_unreachable(make(endpoint=endpoint, connect_timeout="2"), endpoint)


@pytest.mark.parametrize("is_libuv", [True, False])
def test_port_of_a_tcp_store_is_reported_at_once(make: MakeHandler, is_libuv: bool) -> None:
    with tcp_store_endpoint(use_libuv=is_libuv) as endpoint:
        began = time.monotonic()
        with pytest.raises(RendezvousConnectionError, match=r"held by a `TCPStore` of torch.*another port") as caught:
            make(endpoint=endpoint, connect_timeout="60").next_rendezvous()
        # The handler does not wait, because a TCPStore cannot become an etcd.
        assert time.monotonic() - began < 30
    assert endpoint in str(caught.value)


def test_port_of_a_silent_server_is_reported(make: MakeHandler) -> None:
    expected = r"accepts connections.* sends nothing.*ss -ltnp"
    with silent_endpoint() as endpoint, pytest.raises(RendezvousConnectionError, match=expected) as caught:
        make(endpoint=endpoint, connect_timeout="8").next_rendezvous()
    assert endpoint in str(caught.value)


def test_name_without_an_address_is_an_error(make: MakeHandler) -> None:
    _is_unreachable(make(endpoint="no-such-host.invalid:2379", connect_timeout="2"), "no-such-host.invalid")


def _is_unreachable(handler: RendezvousHandler, names: str) -> None:
    began = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as caught:
        handler.next_rendezvous()
    # The default `connect_timeout` is 30 s.
    assert time.monotonic() - began < 25
    assert names in str(caught.value)
    assert is_alone(caught.value)
    # torch calls these while it is failing.
    assert handler.get_backend() == "lattice"
    assert handler.get_run_id()
    assert handler.num_nodes_waiting() == 0
    assert handler.use_agent_store in (True, False)
    assert handler.shutdown() in (True, False)


@pytest.mark.parametrize("wrong", [silent_endpoint, http_endpoint])
def test_server_that_is_not_etcd_is_an_error_in_the_python_api(
    wrong: Callable[[], AbstractContextManager[str]],
) -> None:
    with wrong() as endpoint, pytest.raises(lattice_rdzv.UnreachableError, match=endpoint) as caught:
        lattice_rdzv.join("any", nnodes=1, endpoint=endpoint, connect_timeout=2)
    assert isinstance(caught.value, ConnectionError)
