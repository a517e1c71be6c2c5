"""Scenarios of the Python API: nodes join a run, form worlds, detect changes, share a store, leave and close."""

from __future__ import annotations

import array
import json
import time
from typing import Any

import pytest
from conftest import JoinNode
from harness.etcd import Etcd
from harness.service import Service
from harness.together import Pending, together
from harness.wait import wait_for

import lattice_rdzv


def test_two_nodes_form_a_world(join: JoinNode, run_id: str) -> None:
    first, second = join("node-1"), join("node-2")

    worlds = together(first.next_world, second.next_world)

    assert sorted(world.rank for world in worlds) == [0, 1]
    assert {world.size for world in worlds} == {2}
    assert {world.run_id for world in worlds} == {run_id}
    assert len({(world.round, world.life, world.master_address, world.master_port) for world in worlds}) == 1
    assert worlds[0].master_address == "127.0.0.1"
    assert [member.name for member in worlds[0].members()] == [
        name for _, name in sorted(zip((world.rank for world in worlds), ("node-1", "node-2"), strict=True))
    ]
    assert not first.changing
    assert first.change is None


def test_reprs_identify_their_objects(join: JoinNode, run_id: str) -> None:
    run = join("node-1", nnodes=1)
    world = run.next_world()

    assert run_id in repr(run)
    assert "node-1" in repr(run)
    assert "rank=0" in repr(world)
    assert "size=1" in repr(world)
    assert "node-1" in repr(world.members()[0])


def test_third_node_joins_and_ranks_are_kept(join: JoinNode) -> None:
    first, second = join("node-1", nnodes="2:4"), join("node-2", nnodes="2:4")
    before = together(first.next_world, second.next_world)

    third = join("node-3", nnodes="2:4")
    change = first.wait_change(timeout_seconds=60)
    assert change is not None
    assert change.kind == "newcomers"
    assert "node-3" in change.why
    assert first.changing

    after = together(first.next_world, second.next_world, third.next_world)
    assert [world.rank for world in after] == [*(world.rank for world in before), 2]
    assert {world.size for world in after} == {3}
    assert after[0].round > before[0].round


def test_departure_is_announced_at_once(join: JoinNode) -> None:
    # The lease outlives the test.
    runs = [join(f"node-{number}", nnodes="2:3", lease_ttl=300, last_call_timeout=60) for number in (1, 2, 3)]
    together(*(run.next_world for run in runs))

    waiting = Pending(lambda: runs[0].wait_change(timeout_seconds=60))
    assert runs[2].leave()
    change = waiting.result()

    assert change is not None
    assert change.kind in ("leaving", "lost")
    assert "node-3" in change.why
    worlds = together(runs[0].next_world, runs[1].next_world)
    assert {world.size for world in worlds} == {2}


def test_leaving_is_idempotent(join: JoinNode) -> None:
    run = join("node-1", nnodes=1)
    assert run.leave()
    assert run.leave() in (True, False)
    assert run.state == "left"
    with pytest.raises(lattice_rdzv.LeftError):
        run.next_world()


def test_with_block_leaves_and_does_not_close(join: JoinNode) -> None:
    with join("node-1", nnodes=1) as run:
        run.next_world()
    assert run.closed is None
    with join("node-2", nnodes=1) as again:
        assert again.next_world().size == 1


def test_with_block_leaves_when_it_fails(join: JoinNode) -> None:
    with pytest.raises(ZeroDivisionError), join("node-1", nnodes=1) as run:  # noqa: PT012
        run.next_world()
        raise ZeroDivisionError
    assert run.state == "left"
    assert run.closed is None


def test_closing_ends_the_other_nodes_with_the_reason(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    together(first.next_world, second.next_world)

    assert first.close("failed", why="loss is not a number")
    wait_for("node-2 knows that the run is closed", lambda: second.closed)
    assert second.changing
    with pytest.raises(lattice_rdzv.ClosedError, match="loss is not a number") as caught:
        second.next_world()
    assert (caught.value.outcome, caught.value.by, caught.value.why) == ("failed", "node-1", "loss is not a number")


def test_success_does_not_count_as_a_change(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    together(first.next_world, second.next_world)

    assert first.close("succeeded")
    wait_for("node-2 knows that the run is closed", lambda: second.closed)
    assert not second.changing


def test_run_id_can_be_used_again_by_another_submission(join: JoinNode) -> None:
    first = join("node-1", nnodes=1, submission="monday")
    before = first.next_world()
    assert first.close("succeeded")

    began = time.monotonic()
    second = join("node-1", nnodes=1, submission="tuesday")
    after = second.next_world()
    # Without another submission, this would take `reuse_delay`, which is 30 s.
    assert time.monotonic() - began < 25
    assert after.life != before.life


def test_spare_waits_and_replaces_a_node(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    together(first.next_world, second.next_world)
    spare = join("node-3")
    coming = Pending(lambda: spare.next_world())
    wait_for("node-3 is a spare", lambda: spare.state == "spare")
    assert not first.changing

    second.leave()
    staying, came = first.next_world(), coming.result()
    assert staying.size == came.size == 2
    assert {staying.rank, came.rank} == {0, 1}


def test_world_has_an_allowed_size_and_grows_when_nodes_complete_the_next_one(join: JoinNode) -> None:
    sizes: dict[str, object] = {"nnodes": "1:4", "sizes": [2, 4], "wanted": 2, "last_call_timeout": 300}
    first, second = join("node-1", **sizes), join("node-2", **sizes)
    before = together(first.next_world, second.next_world)
    assert {world.size for world in before} == {2}

    third = join("node-3", **sizes)
    coming = Pending(third.next_world)
    wait_for("node-3 is a spare", lambda: third.state == "spare")
    assert not first.changing
    fourth = join("node-4", **sizes)
    last = Pending(fourth.next_world)
    change = first.wait_change(timeout_seconds=60)
    assert change is not None
    assert change.kind == "newcomers"
    after = together(first.next_world, second.next_world)
    assert [world.rank for world in after] == [world.rank for world in before]
    assert {world.size for world in (*after, coming.result(), last.result())} == {4}


def test_after_a_loss_the_newest_member_is_a_spare_until_the_next_size_is_complete(join: JoinNode) -> None:
    sizes: dict[str, object] = {"nnodes": "1:4", "node_unit": 2, "last_call_timeout": 60}
    runs = [join(f"node-{number}", **sizes) for number in (1, 2, 3, 4)]
    together(*[run.next_world for run in runs])
    gone, *others = runs
    gone.leave()

    pending = {run: Pending(run.next_world) for run in others}
    wait_for("one of three is a spare", lambda: [run.state for run in others].count("spare") == 1)
    (spare,) = [run for run in others if run.state == "spare"]
    worlds = [call.result() for run, call in pending.items() if run is not spare]
    assert {world.size for world in worlds} == {2}
    assert "3 nodes here, 2 used, the next size is 4" in worlds[0].why

    back = join("node-1", **sizes)
    again = [Pending(run.next_world) for run in (*others, back) if run is not spare]
    again.append(pending[spare])
    assert {call.result().size for call in again} == {4}


@pytest.mark.parametrize(
    ("other", "both"),
    [
        ({"sizes": "2:4"}, r"2:4 \(sizes=2:4, wanted=2\), but this node has 2:4 \(sizes=2:4\)"),
        ({"node_unit": 2}, r"2:4 \(sizes=2:4, wanted=2\), but this node has 2:4 \(node_unit=2\)"),
        ({}, r"2:4 \(sizes=2:4, wanted=2\), but this node has 2:4; "),
    ],
)
def test_node_with_other_allowed_sizes_is_refused(join: JoinNode, other: dict[str, object], both: str) -> None:
    sizes: dict[str, object] = {"nnodes": "2:4", "sizes": (2, 4), "wanted": 2}
    first, second = join("node-1", **sizes), join("node-2", **sizes)
    together(first.next_world, second.next_world)
    with pytest.raises(lattice_rdzv.SettingsError, match=both):
        join("node-3", nnodes="2:4", **other).next_world()
    assert not first.changing


def test_time_to_find_a_place_is_bounded(join: JoinNode) -> None:
    run = join("node-1")

    def error() -> str:
        began = time.monotonic()
        with pytest.raises(lattice_rdzv.JoinTimeoutError) as caught:
            run.next_world(timeout_seconds=0.5)
        assert time.monotonic() - began > 0.4
        assert isinstance(caught.value, TimeoutError)
        return str(caught.value)

    # The node asks the service for the names.
    wait_for("the error names the node", lambda: "node-1" in error())


def test_world_that_forms_after_a_timeout_is_returned_next(join: JoinNode) -> None:
    first = join("node-1")
    with pytest.raises(lattice_rdzv.JoinTimeoutError):
        first.next_world(timeout_seconds=0.2)
    second = join("node-2")
    worlds = together(first.next_world, second.next_world)
    assert {world.size for world in worlds} == {2}
    assert len({world.master_port for world in worlds}) == 1


def test_stores_are_shared_by_the_round_and_by_the_run(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    one, other = together(first.next_world, second.next_world)

    waiting = Pending(lambda: other.store.wait("greeting", timeout_seconds=10))
    one.store.set("greeting", b"hello", timeout_seconds=10)
    assert waiting.result() == b"hello"
    assert one.store.add("counter", 2, timeout_seconds=10) + other.store.add("counter", 3, timeout_seconds=10) == 7
    first.store.set("checkpoint", b"7", timeout_seconds=10)

    first_again, _ = together(first.next_world, second.next_world)
    assert first_again.store.get_now(["greeting"], timeout_seconds=10) == [None]
    assert second.store.wait("checkpoint", timeout_seconds=10) == b"7"


def test_store_call_is_bounded(join: JoinNode) -> None:
    world = join("node-1", nnodes=1).next_world()
    with pytest.raises(lattice_rdzv.StoreTimeoutError):
        world.store.wait("never-written", timeout_seconds=0.3)


def test_two_nodes_with_one_name_are_distinguished(join: JoinNode) -> None:
    first, second = join("twin"), join("twin")
    one, _ = together(first.next_world, second.next_world)
    assert sorted(member.name for member in one.members()) == ["twin", "twin#2"]


def test_topology_groups_new_nodes(join: JoinNode) -> None:
    labels = ("rack-b", "rack-a", "rack-b", "rack-a")
    runs = [join(f"node-{number}", nnodes=4, topology=label) for number, label in enumerate(labels)]
    worlds = together(*(run.next_world for run in runs))
    by_rank = [member.topology for member in worlds[0].members()]
    assert by_rank in (["rack-a", "rack-a", "rack-b", "rack-b"], ["rack-b", "rack-b", "rack-a", "rack-a"])


def test_node_index_orders_new_nodes_inside_and_between_topology_groups(join: JoinNode) -> None:
    places = ((3, "rack-a"), (2, "rack-b"), (1, "rack-a"), (0, "rack-b"))
    runs = [join(f"node-{index}", nnodes=4, topology=label, node_index=index) for index, label in places]
    worlds = together(*(run.next_world for run in runs))
    assert [member.name for member in worlds[0].members()] == ["node-0", "node-2", "node-1", "node-3"]


def test_node_with_another_size_is_refused_without_effect_on_others(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    together(first.next_world, second.next_world)
    with pytest.raises(lattice_rdzv.SettingsError, match="3"):
        join("node-3", nnodes=3).next_world()
    assert not first.changing


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"nnodes": "4:2"}, "4"),
        ({"nnodes": 0}, "0"),
        ({"nnodes": "many"}, "many"),
        ({"run_id": ""}, "run"),
        ({"lease_ttl": "1"}, "lease_ttl"),
        ({"lease_tll": "5"}, "lease_ttl"),
        ({"password": "hunter2"}, "password"),
        ({"port": "http"}, "port"),
        ({"nnodes": "2:4", "sizes": [8, 16]}, "argument `sizes` must be .* from 2 to 4.*`8:16`"),
        ({"nnodes": "2:4", "node_unit": 5}, "argument `node_unit` must be .* from 2 to 4.*`5`"),
        ({"nnodes": "2:4", "wanted": 5}, "argument `wanted` must be .*`5`"),
    ],
)
def test_wrong_setting_is_named(join: JoinNode, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(lattice_rdzv.SettingsError, match=expected) as caught:
        join("node-1", **settings)
    assert isinstance(caught.value, ValueError)
    assert "hunter2" not in str(caught.value)


def test_missing_arguments_are_read_from_the_environment(
    etcd: Service, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "LATTICE_RDZV_ENDPOINTS": etcd.endpoint,
        "LATTICE_RDZV_ID": run_id,
        "LATTICE_NNODES": "1:2",
        "LATTICE_RDZV_NODE_NAME": "from-the-environment",
    }.items():
        monkeypatch.setenv(name, value)
    with lattice_rdzv.join(last_call_timeout=0.2, settle_time=0.1) as run:
        world = run.next_world()
        assert run.run_id == run_id
        assert [member.name for member in world.members()] == ["from-the-environment"]


def test_get_returns_at_once_and_another_method_waits(join: JoinNode) -> None:
    store = join("node-1", nnodes=1).next_world().store
    assert store.get("key") is None
    waiting = Pending(lambda: store.wait("key", timeout_seconds=None))
    store.set("key", b"value", timeout_seconds=None)
    assert waiting.result() == b"value"
    assert store.get("key") == b"value"
    assert store.multi_get(["key", "other"]) == [b"value", None]
    assert store.get_now(["key"]) == [b"value"]
    assert store.multi_wait(["key"]) == [b"value"]


def test_compare_set_returns_whether_it_swapped(join: JoinNode) -> None:
    store = join("node-1", nnodes=1).next_world().store
    assert store.compare_set("key", b"", b"one")
    assert not store.compare_set("key", b"", b"one")
    assert store.compare_set("key", b"one", b"two")
    # The key holds what was desired, but not by this call.
    assert not store.compare_set("key", b"one", b"two")
    assert not store.compare_set("other", b"one", b"two")
    assert store.multi_get(["key", "other"]) == [b"two", None]


@pytest.mark.parametrize(
    "value", [b"value", bytearray(b"value"), memoryview(b"-value-")[1:-1], array.array("b", b"value")]
)
def test_values_may_be_any_object_with_the_buffer_protocol(join: JoinNode, value: Any) -> None:
    store = join("node-1", nnodes=1).next_world().store
    store.set("set", value)
    store.multi_set([("multi_set", value)])
    store.append("append", value)
    assert store.compare_set("compare_set", b"", value)
    store.queue_push("queue", value)
    assert store.multi_get(["set", "multi_set", "append", "compare_set"]) == [b"value"] * 4
    assert store.queue_pop("queue") == b"value"
    with pytest.raises(TypeError):
        store.set("text", "value")  # type: ignore[arg-type]


def test_runs_store_waits_when_it_is_used(etcd: Service, join: JoinNode, run_id: str) -> None:
    # While another node is coordinator and decides nothing, the run does not begin.
    coordinator = f"/lattice/rdzv/default/{run_id}/ctl/coordinator"
    record = {"version": 1, "node": "00000000000000aa", "name": "idle", "nonce": "aa", "min": 2, "max": 2}
    etcd.put(coordinator, json.dumps(record).encode())
    run = join("node-1")
    store = run.store
    with pytest.raises(lattice_rdzv.StoreTimeoutError, match="has not begun"):
        store.set("key", b"value", timeout_seconds=0.1)
    setting = Pending(lambda: store.set("key", b"value"))
    etcd.delete(coordinator)
    setting.result()
    assert store.get("key") == b"value"


def test_iteration_ends_with_success_and_raises_otherwise(join: JoinNode) -> None:
    first, second = join("node-1"), join("node-2")
    sizes: list[int] = []

    def work(run: lattice_rdzv.Run, outcome: Any) -> None:
        for world in run:
            sizes.append(world.size)
            if run is first:
                # A run that is closed gives no world to a node that has not got it yet.
                wait_for("both have a world", lambda: len(sizes) >= 2)
                run.close(outcome)
            else:
                wait_for("the run is closed", lambda: run.closed)

    together(lambda: work(first, "succeeded"), lambda: work(second, "succeeded"))
    assert sizes == [2, 2]
    first, second = join("node-1", submission="again"), join("node-2", submission="again")
    other = Pending(lambda: work(second, "failed"))
    with pytest.raises(lattice_rdzv.ClosedError, match="failed"):
        work(first, "failed")
    with pytest.raises(lattice_rdzv.ClosedError, match="failed"):
        other.result()


def test_exception_leaves_soon_if_the_service_does_not_respond(own_etcd: Etcd, join: JoinNode) -> None:
    # Without the exception, this would take `close_timeout`, which is longer than the time limit of the test.
    run = join("node-1", nnodes=1, endpoint=own_etcd.endpoint, close_timeout=600)
    with pytest.raises(ZeroDivisionError), run:  # noqa: PT012
        run.next_world()
        own_etcd.pause()
        raise ZeroDivisionError
    own_etcd.resume()


def test_address_that_this_machine_does_not_have_is_named(join: JoinNode, caplog: pytest.LogCaptureFixture) -> None:
    join("node-1", nnodes=1, local_address="192.0.2.7").next_world()
    line = "`local_addr` is 192.0.2.7, which is not an address of this machine"
    wait_for("the warning", lambda: line in caplog.text, detail=lambda: caplog.text)


def test_first_of_two_pod_addresses_is_the_nodes_own(join: JoinNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "127.0.0.1,::1")
    run = join("node-1", nnodes=1, local_address=None)
    assert run.next_world().master_address == "127.0.0.1"
