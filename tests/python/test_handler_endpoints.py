"""Who is not there, and who is no etcd: the right class, by name, within its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from harness.handlers import MakeHandler, is_alone
from harness.ports import free_port
from harness.silent import http_endpoint, silent_endpoint
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
)

import lattice_rdzv


def test_nobody_listens(make: MakeHandler) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    _is_unreachable(make(endpoint=endpoint, connect_timeout="2", is_host="0"), endpoint, 10)


@pytest.mark.parametrize("wrong", [silent_endpoint, http_endpoint])
def test_it_is_no_etcd(make: MakeHandler, wrong: Callable[[], AbstractContextManager[str]]) -> None:
    with wrong() as endpoint:
        _is_unreachable(make(endpoint=endpoint, connect_timeout="2"), endpoint, 10)


def test_the_name_has_no_address(make: MakeHandler) -> None:
    _is_unreachable(make(endpoint="no-such-host.invalid:2379", connect_timeout="2"), "no-such-host.invalid", 10)


def _is_unreachable(handler: RendezvousHandler, names: str, within_seconds: float) -> None:
    began = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as caught:
        handler.next_rendezvous()
    assert time.monotonic() - began < within_seconds
    assert names in str(caught.value)
    assert is_alone(caught.value)
    # torch calls these while it is failing.
    assert handler.get_backend() == "lattice"
    assert handler.get_run_id()
    assert handler.num_nodes_waiting() == 0
    assert handler.use_agent_store in (True, False)
    assert handler.shutdown() in (True, False)


@pytest.mark.parametrize("wrong", [silent_endpoint, http_endpoint])
def test_it_is_no_etcd_in_our_own_api(wrong: Callable[[], AbstractContextManager[str]]) -> None:
    with wrong() as endpoint, pytest.raises(lattice_rdzv.UnreachableError, match=endpoint) as caught:
        lattice_rdzv.join("any", nnodes=1, endpoint=endpoint, connect_timeout=2)
    assert isinstance(caught.value, ConnectionError)
