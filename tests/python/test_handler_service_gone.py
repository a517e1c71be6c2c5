"""The service is lost permanently, at each stage of a job."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from harness.handlers import MakeHandler, node
from harness.service import Service
from harness.together import Pending
from harness.wait import wait_for
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from lattice_rdzv.torch.exit_barrier import EXIT_BARRIER_COUNT


def test_service_is_gone_while_joining(own_service: Service, run_id: str, make: MakeHandler) -> None:
    waiting = make(endpoint=own_service.endpoint, min_nodes=2, max_nodes=2, join_timeout="6", close_timeout=3)
    pending = Pending(waiting.next_rendezvous)
    wait_for("the node has joined", lambda: own_service.nodes(run_id))
    own_service.kill()
    with pytest.raises((RendezvousConnectionError, RendezvousTimeoutError), match=str(own_service.port)):
        pending.result(timeout_seconds=30)


def test_service_is_gone_while_training_and_at_the_end(own_service: Service, make: MakeHandler) -> None:
    handler = make(endpoint=own_service.endpoint, close_timeout=3, lease_ttl=3)
    info = handler.next_rendezvous()
    own_service.kill()
    wait_for("the node is uncertain", lambda: node(handler).state == "uncertain")
    # Training continues, because no change is announced while the state of the run is unknown.
    assert handler.num_nodes_waiting() == 0
    began = time.monotonic()
    info.store.set_timeout(timedelta(seconds=1))
    with pytest.raises(RuntimeError, match="timeout"):
        info.store.add(EXIT_BARRIER_COUNT, 1)
    # The default timeout of the store is 300 s, and that of `shutdown` is 30 s.
    assert time.monotonic() - began < 60
    began = time.monotonic()
    assert handler.shutdown() is False
    assert time.monotonic() - began < 25


def test_shutdown_never_raises_and_is_idempotent(own_service: Service, make: MakeHandler) -> None:
    never_joined = make(endpoint=own_service.endpoint)
    assert never_joined.shutdown()
    assert never_joined.shutdown()
    with pytest.raises(RendezvousClosedError):
        never_joined.next_rendezvous()
