"""What a job must withstand, through the neutral API and through torch's `get_rendezvous_handler`.

Each case: the right class, a message that names what was wrong, within its time, and the other nodes unharmed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import Certificates
from harness.ports import free_port
from harness.programs import Program
from harness.service import Service
from harness.silent import http_endpoint, silent_endpoint
from harness.together import Pending, together
from harness.wait import wait_for
from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import lattice_rdzv
from lattice_rdzv.torch import store as lattice_store
from lattice_rdzv.torch.handler import LatticeRendezvousHandler

MakeHandler = Callable[..., RendezvousHandler]


@pytest.fixture
def make(service: Service, run_id: str) -> Iterator[MakeHandler]:
    """Makes handlers of this test's run, with short times, through torch's registry; they leave at the end."""
    made: list[RendezvousHandler] = []

    def handler(node_name: str = "node-1", **given: Any) -> RendezvousHandler:
        arguments: dict[str, Any] = {
            "backend": "lattice",
            "endpoint": service.endpoint,
            "run_id": run_id,
            "min_nodes": 1,
            "max_nodes": 1,
            "local_addr": "127.0.0.1",
            "timeout": 900,
            "node_name": node_name,
            "lease_ttl": "3",
            "settle_time": 0.1,
            "last_call_timeout": 1,
            "grow_delay": "0.1",
            "join_timeout": 20,
            "close_timeout": 3,
        }
        arguments.update(given)
        made.append(get_rendezvous_handler(RendezvousParameters(**arguments)))
        return made[-1]

    yield handler
    for one in made:
        leave(one)


def leave(handler: RendezvousHandler) -> bool:
    """Ends a handler as Ctrl-C does: it leaves, and closes nothing."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        return handler.shutdown()


def meet(*handlers: RendezvousHandler) -> list[Any]:
    """One round of these handlers; their infos in the same order."""
    return together(*(handler.next_rendezvous for handler in handlers))


# --- parameters


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"run_id": ""}, "--rdzv-id"),
        ({"run_id": "none", "endpoint": ""}, "--rdzv-id"),
        ({"run_id": "x" * 300}, "300"),
        ({"run_id": "a/b"}, "'/'"),
        ({"run_id": "a\nb"}, r"\\n"),
        ({"run_id": "a\0b"}, r"\\x00"),
        ({"lease_tll": "5"}, "lease_ttl"),
        ({"lease_ttl": "soon"}, "soon"),
        ({"password": "hunter2"}, "password"),
        ({"run_id": "fine", "max_nodes": 2, "min_nodes": 1, "port": "x"}, "port"),
    ],
)
def test_a_wrong_parameter_is_a_value_error(make: MakeHandler, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make(**given)
    assert is_alone(caught.value)
    assert "hunter2" not in str(caught.value)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("nodes", [(4, 2), (0, 1), ("two", 2)])
def test_torch_itself_refuses_wrong_counts(make: MakeHandler, nodes: tuple[Any, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make(min_nodes=nodes[0], max_nodes=nodes[1])


def test_an_unknown_backend_names_the_known(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICE_RDZV_BACKEND", "zookeeper")
    with pytest.raises(ValueError, match=r"zookeeper[\s\S]*etcd|etcd[\s\S]*zookeeper"):
        make()


def test_a_run_id_may_be_unicode(make: MakeHandler, run_id: str) -> None:
    handler = make(run_id=f"größe-実験-{run_id}"[:60])
    assert handler.next_rendezvous().world_size == 1
    assert handler.get_run_id().startswith("größe")


def test_a_run_id_comes_from_the_environment_when_torchrun_has_none(
    make: MakeHandler, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_ID", run_id)
    assert make(run_id="none").get_run_id() == run_id


def test_an_empty_run_id_is_none(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="LATTICE_RDZV_ID"):
        make(run_id="")
    monkeypatch.setenv("LATTICE_RDZV_ID", "from-the-environment")
    assert make(run_id="").get_run_id() == "from-the-environment"


def test_the_number_of_nodes_comes_from_the_environment_when_torchrun_has_none(
    make: MakeHandler, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_NNODES", "2")
    assert [info.world_size for info in meet(make("node-1"), make("node-2"))] == [2, 2]
    assert make(run_id=f"{run_id}-2", min_nodes=1, max_nodes=2).next_rendezvous().world_size == 1


def test_keys_of_other_backends_are_accepted(make: MakeHandler) -> None:
    handler = make(is_host="true", store_type="tcp", read_timeout=60, protocol="http", etcd_prefix="/x", timeout=900)
    assert handler.next_rendezvous().world_size == 1


def test_the_service_variable_that_kubernetes_makes(
    service: Service, run_id: str, make: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", str(service.port))
    assert make(endpoint="").next_rendezvous().world_size == 1


def test_a_service_port_that_is_a_url(service: Service, make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Kubernetes makes of a Service that is called `lattice-rdzv-client-service`.
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", f"tcp://127.0.0.1:{service.port}")
    assert make(endpoint="").next_rendezvous().world_size == 1


def test_a_service_port_that_is_none_is_named(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("LATTICE_RDZV_CLIENT_SERVICE_PORT", "http")
    with pytest.raises(ValueError, match="LATTICE_RDZV_CLIENT_SERVICE_PORT"):
        make(endpoint="")


# --- endpoints


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


# --- the run and its records


def test_a_run_without_an_id_is_refused_where_others_would_meet_it(make: MakeHandler) -> None:
    with pytest.raises(RendezvousStateError, match="--rdzv-id") as caught:
        make(run_id="none").next_rendezvous()
    assert is_alone(caught.value)


def test_a_run_that_hosts_its_service_needs_no_id(make: MakeHandler) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = (make(name, run_id="none", endpoint=endpoint, min_nodes=2, max_nodes=2) for name in ("a", "b"))
    infos = meet(first, second)
    together(*[lambda info=info: exit_barrier(info) for info in infos])
    # The one that hosts waits for the other.
    assert together(first.shutdown, second.shutdown) == [True, True]


def test_another_agent_with_other_counts(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    meet(first, second)
    with pytest.raises(RendezvousStateError, match="nnodes 2:2, and this node has 2:3"):
        make("node-3", min_nodes=2, max_nodes=3).next_rendezvous()
    assert first.num_nodes_waiting() == second.num_nodes_waiting() == 0


@pytest.mark.parametrize(
    ("record", "expected"), [(b"not json at all", "JSON"), (b'{"version": 999}', "major version 999")]
)
def test_a_record_that_cannot_be_read(
    make: MakeHandler, service: Service, run_id: str, record: bytes, expected: str
) -> None:
    service.put(f"/lattice/rdzv/default/{run_id}/ctl/round", record)
    try:
        began = time.monotonic()
        with pytest.raises(RendezvousStateError, match=expected):
            make().next_rendezvous()
        assert time.monotonic() - began < 15
    finally:
        service.delete(f"/lattice/rdzv/default/{run_id}/")


def test_a_node_record_that_cannot_be_read_harms_nobody(make: MakeHandler, service: Service, run_id: str) -> None:
    service.put(f"/lattice/rdzv/default/{run_id}/nodes/00000000000000aa", b"rubbish")
    try:
        assert make().next_rendezvous().world_size == 1
    finally:
        service.delete(f"/lattice/rdzv/default/{run_id}/")


def test_a_closed_run_names_the_node_and_why(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    meet(first, second)
    fail(first, exit_code=3)

    wait_for("node-2 is told to come", lambda: second.num_nodes_waiting() == 1)
    with pytest.raises(RendezvousClosedError, match="node-1") as caught:
        second.next_rendezvous()
    assert "worker 0 failed with exit code 3" in str(caught.value)
    assert is_alone(caught.value)
    assert second.is_closed()


def test_a_node_that_fails_may_leave_instead(make: MakeHandler) -> None:
    first = make("node-1", max_nodes=2, on_node_failure="leave")
    second = make("node-2", max_nodes=2, on_node_failure="leave")
    meet(first, second)
    fail(first, exit_code=3)
    wait_for("node-2 is told to come", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1


def test_a_time_out_while_waiting(make: MakeHandler) -> None:
    began = time.monotonic()
    with pytest.raises(RendezvousTimeoutError, match="node-1"):
        make(min_nodes=2, max_nodes=2, join_timeout="1").next_rendezvous()
    assert 0.9 < time.monotonic() - began < 5


def test_a_second_node_where_one_is_enough_is_told_the_option(make: MakeHandler) -> None:
    first = make("node-1")
    meet(first)
    with pytest.raises(RendezvousTimeoutError, match="--nnodes"):
        make("node-2", join_timeout="1").next_rendezvous()
    assert first.num_nodes_waiting() == 0


# --- the service goes for good


def test_the_service_is_gone_while_joining(own_service: Service, make: MakeHandler) -> None:
    waiting = make(endpoint=own_service.endpoint, min_nodes=2, max_nodes=2, join_timeout="6")
    pending = Pending(waiting.next_rendezvous)
    wait_for("the node is there", lambda: any("/nodes/" in key for key in own_service.keys_under("/lattice/")))
    own_service.kill()
    with pytest.raises((RendezvousConnectionError, RendezvousTimeoutError), match=str(own_service.port)):
        pending.result(timeout_seconds=30)


def test_the_service_is_gone_while_training_and_at_the_end(own_service: Service, make: MakeHandler) -> None:
    handler = make(endpoint=own_service.endpoint)
    info = handler.next_rendezvous()
    own_service.kill()
    wait_for("the node is uncertain", lambda: node(handler).state == "uncertain")
    # Training goes on: nothing is told for as long as nothing is known.
    assert handler.num_nodes_waiting() == 0
    began = time.monotonic()
    info.store.set_timeout(_seconds(1))
    with pytest.raises(RuntimeError, match="timeout"):
        info.store.add(lattice_store.EXIT_BARRIER_COUNT, 1)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    assert handler.shutdown() is False
    assert time.monotonic() - began < 3 + 2 + 2


def test_shutdown_never_raises_and_is_idempotent(own_service: Service, make: MakeHandler) -> None:
    never_joined = make(endpoint=own_service.endpoint)
    assert never_joined.shutdown()
    assert never_joined.shutdown()
    with pytest.raises(RendezvousClosedError):
        never_joined.next_rendezvous()


# --- what shutdown means


def test_success_is_a_full_exit_barrier(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    infos = meet(first, second)
    together(*(lambda info=info: exit_barrier(info) for info in infos))
    assert first.shutdown()
    assert second.num_nodes_waiting() == 0
    assert second.shutdown()
    assert second.shutdown()


def test_an_exit_barrier_that_was_not_answered_was_asked_for(
    own_service: Service, run_id: str, make: MakeHandler
) -> None:
    first, second = (
        make(name, endpoint=own_service.endpoint, max_nodes=2, min_nodes=1) for name in ("node-1", "node-2")
    )
    infos = meet(first, second)
    infos[0].store.set_timeout(_seconds(0.5))
    own_service.pause()
    try:
        with pytest.raises(RuntimeError, match="timeout"):
            infos[0].store.add(lattice_store.EXIT_BARRIER_COUNT, 1)
    finally:
        own_service.resume()
    # Its workers have succeeded, and it knows nothing of the other's: no reason to call the run failed.
    assert first.shutdown()
    wait_for("node-2 is told, or nothing is left to tell", lambda: len(node_keys(own_service, run_id)) == 1)
    assert not second.is_closed()
    assert second.next_rendezvous().world_size == 1


def test_closing_a_run_that_is_closed_begins_no_other(make: MakeHandler, service: Service, run_id: str) -> None:
    first = make("node-1")
    exit_barrier(first.next_rendezvous())
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


def test_closing_a_run_lets_go_of_the_port(make: MakeHandler) -> None:
    import socket

    port = free_port()
    handler = make(port=port)
    handler.set_closed()  # type: ignore[no-untyped-call]
    assert handler.is_closed()
    with socket.create_server(("", port)):
        pass


def test_a_signal_in_flight_only_leaves(make: MakeHandler) -> None:
    first, second = make("node-1", max_nodes=2), make("node-2", max_nodes=2)
    meet(first, second)
    try:
        raise SignalException("stop", sigval=signal.SIGTERM)
    except SignalException:
        assert first.shutdown()
    wait_for("node-2 is told to come", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1


def test_a_finished_node_is_not_waited_for(make: MakeHandler) -> None:
    first, second, third = (make(f"node-{number}", max_nodes=3, min_nodes=1) for number in (1, 2, 3))
    infos = meet(first, second, third)
    finishing = Pending(lambda: exit_barrier(infos[0]))
    wait_for("node-1 asked for its exit barrier", lambda: infos[1].store.check([lattice_store.EXIT_BARRIER_COUNT]))
    leave(third)
    wait_for("node-2 is told to come", lambda: second.num_nodes_waiting() == 1)
    assert second.next_rendezvous().world_size == 1
    leave(second)
    # Nobody is left who could fill the barrier.
    finishing.result(timeout_seconds=20)


def test_who_came_last_and_died_before_it_said_so_holds_up_nobody(
    make: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lattice_store, "_COUNT_SECONDS", 0.5)
    first, second = make("node-1", max_nodes=2, min_nodes=2), make("node-2", max_nodes=2, min_nodes=2)
    infos = meet(first, second)
    finishing = Pending(lambda: exit_barrier(infos[0]))
    wait_for("node-1 asked for its exit barrier", lambda: infos[1].store.check([lattice_store.EXIT_BARRIER_COUNT]))
    # And never comes to say that it was the last.
    assert infos[1].store.add(lattice_store.EXIT_BARRIER_COUNT, 1) == 2
    finishing.result(timeout_seconds=20)
    assert first.shutdown()
    assert node(first).closed[0] == "succeeded"


def test_with_losses_ignored_the_exit_barrier_ends_all_the_same(
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
    # Ignored while anybody trains; with the last one done, it is told that nobody else will come.
    exit_barrier(info, timeout_seconds=60)
    assert handler.shutdown()


def test_a_spare_that_is_not_needed_ends_with_status_0(make: MakeHandler, service: Service, run_id: str) -> None:
    member, spare = make("node-1"), make("node-2")
    info = member.next_rendezvous()
    waiting = Pending(spare.next_rendezvous)
    wait_for("node-2 is in the run", lambda: len(node_keys(service, run_id)) == 2)
    exit_barrier(info)
    member.shutdown()
    with pytest.raises(SystemExit) as caught:
        waiting.result()
    assert caught.value.code == 0


def test_a_spare_of_a_run_that_failed_says_so(make: MakeHandler, service: Service, run_id: str) -> None:
    member, spare = make("node-1"), make("node-2")
    member.next_rendezvous()
    waiting = Pending(spare.next_rendezvous)
    wait_for("node-2 is in the run", lambda: len(node_keys(service, run_id)) == 2)
    fail(member, exit_code=1)
    with pytest.raises(RendezvousClosedError, match="node-1"):
        waiting.result()


def test_a_repeat_of_a_submission_that_succeeded_ends_with_status_0(make: MakeHandler) -> None:
    member = make("node-1", submission="job-1")
    exit_barrier(member.next_rendezvous())
    member.shutdown()
    with pytest.raises(SystemExit) as caught:
        make("node-1", submission="job-1").next_rendezvous()
    assert caught.value.code == 0


def test_another_submission_begins_at_once(make: MakeHandler) -> None:
    member = make("node-1", submission="job-1")
    exit_barrier(member.next_rendezvous())
    member.shutdown()
    began = time.monotonic()
    assert make("node-1", submission="job-2").next_rendezvous().world_size == 1
    assert time.monotonic() - began < 10


def test_the_exchange_goes_on_where_the_session_has_ended(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    info = meet(first, second)[1]
    store = info.store
    own = f"{lattice_store.ROLE_INFO}{info.rank}", json.dumps({"role": "trainer", "rank": 0, "local_world_size": 2})
    store.set(*own)
    fail(first, exit_code=3)
    wait_for("node-2 is told to come", lambda: second.num_nodes_waiting() == 1)
    with pytest.raises(RendezvousClosedError):
        second.next_rendezvous()
    node(second).leave()
    assert second.num_nodes_waiting() == 1
    store.set(*own)
    store.multi_set([f"{lattice_store.ASSIGNED_RANKS}{rank}" for rank in (0, 1)], [b"[]", b"[]"])
    assert json.loads(store.get(f"{lattice_store.ASSIGNED_RANKS}1")) == [2, 4, 2, 4]
    infos = store.multi_get([f"{lattice_store.ROLE_INFO}{rank}" for rank in (0, 1)])
    assert [json.loads(info)["local_world_size"] for info in infos] == [2, 2]
    # Anybody's else is told.
    with pytest.raises(RuntimeError, match="has left"):
        store.set("else", b"")


# --- the workers' store


def test_the_workers_store_is_served_from_the_socket_that_was_published(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    ports = set()
    for _ in range(2):
        infos = meet(first, second)
        places = {(place_of(info).master_addr, place_of(info).master_port) for info in infos}
        assert len(places) == 1
        address, port = places.pop()
        client = TCPStore(address, port, is_master=False, timeout=_seconds(10))
        assert not client.check(["left-over"])
        client.set("left-over", "1")
        ports.add(port)
    assert first.use_agent_store
    assert len(ports) == 2


def test_the_workers_may_serve_it_themselves(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    handler = make()
    place = place_of(handler.next_rendezvous())
    assert not handler.use_agent_store
    server = TCPStore(place.master_addr, place.master_port, is_master=True, wait_for_workers=False)
    server.set("key", "value")


def test_a_port_can_be_fixed(make: MakeHandler) -> None:
    port = free_port()
    handler = make(port=port)
    for _ in range(2):
        assert place_of(handler.next_rendezvous()).master_port == port


def test_a_port_that_is_taken_is_named(make: MakeHandler) -> None:
    import socket

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousConnectionError, match=str(port)):
            make(port=port).next_rendezvous()


# --- signals


def test_a_signal_ends_the_wait_with_torchs_exception(make: MakeHandler) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    handler = make(min_nodes=2, max_nodes=2)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    # Without the signal it would be a time-out after 20 s.
    with pytest.raises(SignalException) as caught:
        handler.next_rendezvous()
    assert caught.value.sigval == signal.SIGTERM
    leave(handler)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_handler_of_the_application_is_left_alone(make: MakeHandler) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        handler = make()
        handler.next_rendezvous()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for("the application hears the signal", lambda: heard)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_signal_that_the_application_handles_is_not_told(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    heard: list[int] = []

    def is_told() -> bool:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for("the application hears the signal", lambda: heard)
        heard.clear()
        return bool(told(second, within_seconds=1.0))

    signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    try:
        pending = Pending(second.next_rendezvous)
        first.next_rendezvous()
        pending.result()
        assert not is_told()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_which_signals_are_told_is_seen_anew_each_round(make: MakeHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own handler, which it puts in when it starts workers, and whose exception must not end this test.
    from torch.distributed.elastic.multiprocessing import api

    monkeypatch.setattr(api, "_terminate_process_handler", lambda number, frame: None)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGUSR1")
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        for _ in range(2):
            pending = Pending(second.next_rendezvous)
            first.next_rendezvous()
            pending.result()
            signal.signal(signal.SIGUSR1, api._terminate_process_handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert told(second, within_seconds=5.0)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_listener_for_wakeups_may_be_gone(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    handler = make()
    try:
        handler.next_rendezvous()
    finally:
        os.close(writing)
        os.close(reading)
    assert leave(handler)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_listener_for_wakeups_that_was_gone_before_ends_no_rendezvous(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    # A number that nothing else is given meanwhile.
    high = os.dup2(writing, 900)
    os.set_blocking(high, False)
    signal.set_wakeup_fd(high)
    for descriptor in (high, writing, reading):
        os.close(descriptor)
    handler = make()
    assert handler.next_rendezvous().world_size == 1
    assert leave(handler)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_descriptor_that_somebody_replaced_is_put_in_again(make: MakeHandler) -> None:
    handler = make()
    handler.next_rendezvous()
    ours = signal.set_wakeup_fd(-1)
    assert ours != -1
    handler.next_rendezvous()
    assert signal.set_wakeup_fd(-1) != -1


def test_two_handlers_may_end_in_the_order_in_which_they_were_made(make: MakeHandler, run_id: str) -> None:
    first, second = make("node-1"), make("node-1", run_id=f"{run_id}-2")
    first.next_rendezvous()
    second.next_rendezvous()
    leave(first)
    leave(second)
    assert signal.set_wakeup_fd(-1) == -1


def test_whoever_listened_for_wakeups_still_hears_them(make: MakeHandler) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        handler = make()
        handler.next_rendezvous()
        os.kill(os.getpid(), signal.SIGUSR1)

        def heard() -> bytes:
            try:
                return os.read(reading, 16)
            except BlockingIOError:
                return b""

        assert wait_for("the byte arrives", heard) == bytes([signal.SIGUSR1])
        leave(handler)
        assert signal.set_wakeup_fd(-1) == writing
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        os.close(reading)
        os.close(writing)


# --- credentials


def test_mutual_tls(mtls_service: Service, certificates: Certificates, make: MakeHandler) -> None:
    handler = make(
        endpoint=mtls_service.endpoint,
        cacert=str(certificates.authority),
        cert=str(certificates.client),
        key=str(certificates.client_key),
    )
    assert handler.next_rendezvous().world_size == 1
    leave(handler)
    with pytest.raises(RendezvousConnectionError):
        make(endpoint=mtls_service.endpoint, cacert=str(certificates.authority), connect_timeout="3").next_rendezvous()


def test_a_password(own_service: Service, make: MakeHandler, tmp_path: Any) -> None:
    own_service.need_password("agent", "s3cret")
    file, wrong = tmp_path / "password", tmp_path / "wrong"
    file.write_text("s3cret\n")
    wrong.write_text("guess\n")
    handler = make(endpoint=own_service.endpoint, user="agent", password_file=str(file))
    assert handler.next_rendezvous().world_size == 1
    leave(handler)
    with pytest.raises(RendezvousError) as caught:
        make(
            endpoint=own_service.endpoint, user="agent", password_file=str(wrong), connect_timeout="3"
        ).next_rendezvous()
    assert "guess" not in str(caught.value)


@pytest.mark.parametrize("name", ["cacert", "password_file"])
def test_a_credential_that_cannot_be_read_is_named_at_once(make: MakeHandler, tmp_path: Any, name: str) -> None:
    missing = tmp_path / "missing"
    given = {"user": "agent"} if name == "password_file" else {"endpoint": "https://localhost:2379"}
    with pytest.raises(ValueError, match=rf"`{name}`.*missing"):
        make(**given, **{name: str(missing)})


def test_open_files_are_raised_all_the_way_where_nobody_says_how_many(
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


def is_alone(error: BaseException) -> bool:
    """Whether a traceback shows this error and no other of ours before it."""
    return error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)


def place_of(info: RendezvousInfo) -> RendezvousStoreInfo:
    """Where the workers meet."""
    place = info.bootstrap_store_info
    assert place is not None
    return place


def node(handler: RendezvousHandler) -> Any:
    """The native node of a handler."""
    assert isinstance(handler, LatticeRendezvousHandler)
    return handler._node


def told(handler: RendezvousHandler, *, within_seconds: float) -> int:
    """Whether this node is told that its world is about to change."""
    deadline = time.monotonic() + within_seconds
    while not handler.num_nodes_waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    return handler.num_nodes_waiting()


def node_keys(service: Service, run_id: str) -> list[str]:
    return [key for key in service.keys_under("/lattice/") if f"/{run_id}/nodes/" in key]


def exit_barrier(info: Any, *, timeout_seconds: float = 20) -> None:
    """What torch's agent does when its workers have succeeded."""
    from torch.distributed.elastic.utils import store as store_utilities

    store_utilities.barrier(info.store, info.world_size, "torchelastic/agent/terminal_state", timeout_seconds)


def fail(handler: RendezvousHandler, *, exit_code: int) -> None:
    """What torch's launcher does when a worker failed and no restarts are left."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file="<N/A>")
    try:
        raise ChildFailedError("train.py", {0: failure})
    except ChildFailedError:
        handler.shutdown()


def _seconds(seconds: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=seconds)
