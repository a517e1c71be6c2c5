"""A run, its records and its nodes. A node that must not join fails with the reason, and does not affect the others."""

from __future__ import annotations

import time

import pytest
from harness.handlers import MakeHandler, fail, finish, form_round, is_alone
from harness.ports import free_port
from harness.service import Service
from harness.together import together
from harness.wait import wait_for
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousStateError,
    RendezvousTimeoutError,
)


def test_run_without_an_id_is_refused_on_a_shared_service(make: MakeHandler) -> None:
    with pytest.raises(RendezvousStateError, match="--rdzv-id") as caught:
        make(run_id="none").next_rendezvous()
    assert is_alone(caught.value)


def test_run_that_hosts_its_service_needs_no_id(make: MakeHandler) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = (make(name, run_id="none", endpoint=endpoint, min_nodes=2, max_nodes=2) for name in ("a", "b"))
    infos = form_round(first, second)
    together(*[lambda info=info: finish(info) for info in infos])
    # The host waits until the other node has left.
    assert together(first.shutdown, second.shutdown) == [True, True]


def test_agent_with_other_counts_is_refused(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    form_round(first, second)
    with pytest.raises(RendezvousStateError, match="nnodes 2:2, but this node has 2:3"):
        make("node-3", min_nodes=2, max_nodes=3).next_rendezvous()
    assert first.num_nodes_waiting() == second.num_nodes_waiting() == 0


@pytest.mark.parametrize(
    ("record", "expected"), [(b"not json at all", "JSON"), (b'{"version": 999}', "major version 999")]
)
def test_unreadable_record_is_an_error(
    make: MakeHandler, service: Service, run_id: str, record: bytes, expected: str
) -> None:
    service.put(f"/lattice/rdzv/default/{run_id}/ctl/round", record)
    try:
        began = time.monotonic()
        with pytest.raises(RendezvousStateError, match=expected):
            make().next_rendezvous()
        assert time.monotonic() - began < 30
    finally:
        service.delete(f"/lattice/rdzv/default/{run_id}/")


def test_unreadable_node_record_affects_only_its_writer(make: MakeHandler, service: Service, run_id: str) -> None:
    service.put(f"/lattice/rdzv/default/{run_id}/nodes/00000000000000aa", b"rubbish")
    try:
        assert make().next_rendezvous().world_size == 1
    finally:
        service.delete(f"/lattice/rdzv/default/{run_id}/")


def test_closed_run_names_the_node_and_why(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    form_round(first, second)
    fail(first, exit_code=3)

    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    with pytest.raises(RendezvousClosedError, match="node-1") as caught:
        second.next_rendezvous()
    assert "worker 0 failed with exit code 3" in str(caught.value)
    assert is_alone(caught.value)
    assert second.is_closed()


def test_node_that_fails_may_leave_instead(make: MakeHandler) -> None:
    settings = {"max_nodes": 2, "last_call_timeout": 20, "on_node_failure": "leave"}
    first, second = make("node-1", **settings), make("node-2", **settings)
    form_round(first, second)
    fail(first, exit_code=3)
    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1


def test_timeout_of_a_wait_names_the_waiting_node(make: MakeHandler) -> None:
    began = time.monotonic()
    with pytest.raises(RendezvousTimeoutError, match="node-1"):
        make(min_nodes=2, max_nodes=2, join_timeout="1").next_rendezvous()
    assert 0.9 < time.monotonic() - began < 30


def test_second_node_of_a_run_of_one_is_pointed_to_nnodes(make: MakeHandler) -> None:
    first = make("node-1")
    form_round(first)
    with pytest.raises(RendezvousTimeoutError, match="--nnodes"):
        make("node-2", join_timeout="1").next_rendezvous()
    assert first.num_nodes_waiting() == 0
