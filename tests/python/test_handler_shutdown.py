"""The effects of `shutdown`: the run succeeds or fails, or only this node leaves."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from harness.handlers import MakeHandler, fail, finish, form_round, leave, node
from harness.ports import free_port
from harness.programs import Program
from harness.service import Service, on_etcd
from harness.together import Pending, together
from harness.wait import wait_for
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
)

from lattice_rdzv.torch import exit_barrier
from lattice_rdzv.torch.exit_barrier import EXIT_BARRIER_COUNT


def test_success_is_a_full_exit_barrier(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    infos = form_round(first, second)
    together(*(lambda info=info: finish(info) for info in infos))
    assert first.shutdown()
    assert second.num_nodes_waiting() == 0
    assert second.shutdown()
    assert second.shutdown()


def test_node_whose_exit_barrier_gets_no_response_does_not_fail_the_run(
    own_service: Service, run_id: str, make: MakeHandler
) -> None:
    first, second = (
        make(name, endpoint=own_service.endpoint, max_nodes=2, last_call_timeout=20) for name in ("node-1", "node-2")
    )
    infos = form_round(first, second)
    infos[0].store.set_timeout(timedelta(seconds=0.5))
    own_service.pause()
    try:
        with pytest.raises(RuntimeError, match="timeout"):
            infos[0].store.add(EXIT_BARRIER_COUNT, 1)
    finally:
        own_service.resume()
    # The workers of node-1 have succeeded, and the result of node-2 is unknown, so the run has not failed.
    assert first.shutdown()
    wait_for("node-1 has left", lambda: len(own_service.nodes(run_id)) == 1)
    assert not second.is_closed()
    assert second.next_rendezvous().world_size == 1


def test_closing_a_closed_run_changes_nothing(make: MakeHandler, service: Service, run_id: str) -> None:
    first = make("node-1")
    finish(first.next_rendezvous())
    assert first.shutdown()
    closed_key = f"/lattice/rdzv/default/{run_id}/ctl/closed"
    before = service.get(closed_key)
    assert before is not None
    late = make("node-2")
    late.set_closed()  # type: ignore[no-untyped-call]
    assert service.get(closed_key) == before
    assert late.is_closed()
    with pytest.raises(RendezvousClosedError):
        late.next_rendezvous()


def test_closing_a_run_releases_the_port(make: MakeHandler) -> None:
    import socket

    port = free_port()
    handler = make(port=port)
    handler.set_closed()  # type: ignore[no-untyped-call]
    assert handler.is_closed()
    with socket.create_server(("", port)):
        pass


def test_signal_in_flight_only_leaves(make: MakeHandler) -> None:
    first, second = (make(name, max_nodes=2, last_call_timeout=20) for name in ("node-1", "node-2"))
    form_round(first, second)
    try:
        raise SignalException("stop", sigval=signal.SIGTERM)
    except SignalException:
        assert first.shutdown()
    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1


def test_finished_node_is_not_waited_for(make: MakeHandler) -> None:
    first, second, third = (make(f"node-{number}", max_nodes=3, last_call_timeout=20) for number in (1, 2, 3))
    infos = form_round(first, second, third)
    finishing = Pending(lambda: finish(infos[0]))
    wait_for("node-1 is at its exit barrier", lambda: infos[1].store.check([EXIT_BARRIER_COUNT]))
    leave(third)
    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1
    leave(second)
    # No node is left that could complete the barrier.
    finishing.result(timeout_seconds=20)


def test_last_node_that_fails_at_the_exit_barrier_does_not_block_the_others(
    make: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_barrier, "_COUNT_SECONDS", 0.5)
    first, second = make("node-1", max_nodes=2, min_nodes=2), make("node-2", max_nodes=2, min_nodes=2)
    infos = form_round(first, second)
    finishing = Pending(lambda: finish(infos[0]))
    wait_for("node-1 is at its exit barrier", lambda: infos[1].store.check([EXIT_BARRIER_COUNT]))
    # node-2 counts itself, but does not set the key that completes the barrier.
    assert infos[1].store.add(EXIT_BARRIER_COUNT, 1) == 2
    finishing.result(timeout_seconds=20)
    assert first.shutdown()
    assert node(first).closed[0] == "succeeded"


@on_etcd  # the nodes do not use it, because the first of them hosts the service
def test_host_serves_until_the_others_have_left(make: MakeHandler) -> None:
    settings = {"endpoint": f"127.0.0.1:{free_port()}", "min_nodes": 2, "max_nodes": 2}
    host, other = make("node-1", is_host="1", **settings), make("node-2", is_host="0", **settings)
    infos = form_round(host, other)
    finishing = Pending(lambda: finish(infos[0], timeout_seconds=60))
    wait_for("node-1 is at its exit barrier", lambda: infos[1].store.check([EXIT_BARRIER_COUNT]))
    assert other.num_nodes_waiting() == 0
    finish(infos[1])
    finishing.result(timeout_seconds=20)
    # The host serves until the other has left.
    assert together(other.shutdown, host.shutdown) == [True, True]


@on_etcd  # as above
def test_node_that_does_not_host_waits_at_the_exit_for_its_timeout(make: MakeHandler) -> None:
    settings = {"endpoint": f"127.0.0.1:{free_port()}", "min_nodes": 2, "max_nodes": 2}
    host, other = make("node-1", is_host="1", **settings), make("node-2", is_host="0", **settings)
    infos = form_round(host, other)
    with pytest.raises(RuntimeError, match="timeout"):
        finish(infos[1], timeout_seconds=3)
    leave(other)


def test_exit_barrier_ends_although_losses_are_ignored(
    make: MakeHandler, service: Service, run_id: str, tmp_path: Path
) -> None:
    mortal = Program(
        tmp_path,
        f"""
        import lattice_rdzv
        run = lattice_rdzv.join({run_id!r}, nnodes=2, endpoint={service.endpoint!r}, node_name="mortal", lease_ttl=3)
        run.next_world()
        run.wait_change()
        """,
    )
    handler = make("node-1", min_nodes=2, max_nodes=2, on_member_loss="ignore")
    info = handler.next_rendezvous()
    mortal.process.kill()
    mortal.process.wait()
    # The loss is ignored while a node trains. When the last node has finished, the barrier ends without the lost node.
    finish(info, timeout_seconds=60)
    assert handler.shutdown()


def test_spare_that_is_not_needed_ends_with_status_0(make: MakeHandler, service: Service, run_id: str) -> None:
    member, spare = make("node-1"), make("node-2")
    info = member.next_rendezvous()
    waiting = Pending(spare.next_rendezvous)
    wait_for("node-2 is in the run", lambda: len(service.nodes(run_id)) == 2)
    finish(info)
    member.shutdown()
    with pytest.raises(SystemExit) as caught:
        waiting.result()
    assert caught.value.code == 0


def test_spare_of_a_failed_run_raises_the_reason(make: MakeHandler, service: Service, run_id: str) -> None:
    member, spare = make("node-1"), make("node-2")
    member.next_rendezvous()
    waiting = Pending(spare.next_rendezvous)
    wait_for("node-2 is in the run", lambda: len(service.nodes(run_id)) == 2)
    fail(member, exit_code=1)
    with pytest.raises(RendezvousClosedError, match="node-1"):
        waiting.result()


def test_repeat_of_a_submission_that_succeeded_ends_with_status_0(make: MakeHandler) -> None:
    member = make("node-1", submission="job-1")
    finish(member.next_rendezvous())
    member.shutdown()
    with pytest.raises(SystemExit) as caught:
        make("node-1", submission="job-1").next_rendezvous()
    assert caught.value.code == 0


def test_another_submission_begins_at_once(make: MakeHandler) -> None:
    member = make("node-1", submission="job-1")
    finish(member.next_rendezvous())
    member.shutdown()
    began = time.monotonic()
    assert make("node-1", submission="job-2").next_rendezvous().world_size == 1
    # The same submission would wait for `reuse_delay`, which is 30 s.
    assert time.monotonic() - began < 25
