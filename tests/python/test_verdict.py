"""The decisions of `shutdown`: the whole table, and programs that clean up as torch documents it."""

from __future__ import annotations

from typing import Any

import pytest
from harness.handlers import MakeHandler, finish, form_round, leave, node
from harness.ports import free_port
from harness.service import on_etcd
from harness.wait import wait_for
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from lattice_rdzv.torch.verdict import Progress, TorchVersion, Verdict, failure, verdict


def child_failed(exit_code: int = 3) -> ChildFailedError:
    return ChildFailedError("train.py", {0: ProcessFailure(0, 1, exit_code, "<N/A>")})


IN_FLIGHT = {
    "nothing": None,
    "a failed worker": child_failed(),
    "a signal": SignalException("stop", sigval=15),  # type: ignore[arg-type]
    "Ctrl-C": KeyboardInterrupt(),
    "an exit": SystemExit(1),
    "an error of the agent": RuntimeError("no"),
}


@pytest.mark.parametrize("torch_version", [(2, 6), (2, 7), (2, 8), (3, 0)], ids=str)
@pytest.mark.parametrize("on_node_failure", ["close", "leave"])
@pytest.mark.parametrize("in_flight", IN_FLIGHT)
@pytest.mark.parametrize("progress", Progress)
def test_full_barrier_is_success_and_a_failed_worker_is_failure(
    progress: Progress, in_flight: str, on_node_failure: str, torch_version: TorchVersion
) -> None:
    # In these versions, the agent calls `shutdown` before torchrun raises.
    shuts_down_first = torch_version < (2, 8)
    expected = {
        (Progress.ALL_ARRIVED, in_flight, on_node_failure): Verdict.SUCCEEDED,
        (Progress.NO_AGENT, "a failed worker", "close"): Verdict.FAILED,
        (Progress.WORKERS, "a failed worker", "close"): Verdict.FAILED,
        (Progress.WORKERS, "nothing", "close"): Verdict.FAILED if shuts_down_first else Verdict.LEAVE,
    }.get((progress, in_flight, on_node_failure), Verdict.LEAVE)
    found = verdict(progress, IN_FLIGHT[in_flight], on_node_failure=on_node_failure, torch_version=torch_version)
    assert found is expected


@pytest.mark.parametrize(("exit_code", "how"), [(3, "exit code 3"), (-9, "SIGKILL")])
def test_failure_names_the_worker_and_how_it_ended(exit_code: int, how: str) -> None:
    assert failure(child_failed(exit_code)) == f"worker 0 failed with {how}"


def test_finally_shutdown_leaves_the_run_to_its_peers(make: MakeHandler) -> None:
    first, second = (make(name, max_nodes=2, last_call_timeout=20) for name in ("node-1", "node-2"))
    form_round(first, second)
    try:
        pass  # the program trains without the exit barrier of torch's agent
    finally:
        assert first.shutdown()
    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1
    assert not second.is_closed()


@pytest.mark.parametrize(("created_before", "closes"), [(True, True), (False, False)])
def test_failure_that_was_handled_before_the_handler_existed_is_no_failure_of_its_run(
    make: MakeHandler, created_before: bool, closes: bool
) -> None:
    settings: dict[str, Any] = {"max_nodes": 2, "min_nodes": 2}
    peer = make("node-2", **settings)
    early = make("node-1", **settings) if created_before else None
    try:
        raise child_failed()
    except ChildFailedError:
        # A program may launch another job after a failure.
        handler = early or make("node-1", **settings)
        form_round(handler, peer)
        assert handler.shutdown()
    assert (node(handler).closed is not None) == closes


@on_etcd  # the node does not use it, because it hosts the embedded server
def test_hosted_run_can_be_closed_before_its_first_round(make: MakeHandler) -> None:
    handler = make(endpoint=f"127.0.0.1:{free_port()}", is_host="1", close_timeout=10)
    handler.set_closed()  # type: ignore[no-untyped-call]
    assert handler.is_closed()


@on_etcd  # as above, because the first node hosts
def test_exit_barrier_timeout_binds_the_host_as_well(make: MakeHandler, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"endpoint": f"127.0.0.1:{free_port()}", "min_nodes": 2, "max_nodes": 2}
    host, other = make("node-1", is_host="1", **settings), make("node-2", is_host="0", **settings)
    infos = form_round(host, other)
    with caplog.at_level("INFO", logger="lattice_rdzv.torch"), pytest.raises(RuntimeError, match="timeout"):
        finish(infos[0], timeout_seconds=3)
    assert "this node hosts the embedded server and stops it" in caplog.text
    leave(other)


def test_spare_respects_join_timeout(make: MakeHandler) -> None:
    settings: dict[str, Any] = {"min_nodes": 2, "max_nodes": 2}
    form_round(make("node-1", **settings), make("node-2", **settings))
    with pytest.raises(RendezvousTimeoutError, match="node-1"):
        make("node-3", join_timeout=1, **settings).next_rendezvous()
