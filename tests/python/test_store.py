"""The whole interface of torch's Store: directly, through a PrefixStore, from two processes, and with gloo."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from harness.service import Service
from harness.together import Pending, together
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.utils import store as store_utilities


def enter(endpoint: str, run_id: str, name: str, nnodes: int) -> tuple[Any, RendezvousInfo]:
    """Joins a run through torch's own registry."""
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend="lattice",
            endpoint=endpoint,
            run_id=run_id,
            min_nodes=nnodes,
            max_nodes=nnodes,
            local_addr="127.0.0.1",
            node_name=name,
            lease_ttl="10",
            settle_time="0.1",
        )
    )
    return handler, handler.next_rendezvous()


@pytest.fixture
def store(service: Service, run_id: str) -> Iterator[Any]:
    """Provides the store of a world of one node."""
    handler, info = enter(service.endpoint, run_id, "node-1", 1)
    info.store.set_timeout(timedelta(seconds=60))
    yield info.store
    handler.shutdown()


@pytest.fixture(params=["direct", "prefix"])
def either(request: pytest.FixtureRequest, store: Any) -> Any:
    """Provides the store itself, and behind a prefix as torch uses it."""
    return store if request.param == "direct" else PrefixStore("prefix", store)


def test_values(either: Any) -> None:
    either.set("text", "value")
    either.set("bytes", bytes(range(256)))
    either.set("empty", b"")
    assert either.get("text") == b"value"
    assert either.get("bytes") == bytes(range(256))
    assert either.get("empty") == b""
    either.set("text", "other")
    assert either.get("text") == b"other"


def test_counters(either: Any) -> None:
    assert either.add("counter", 1) == 1
    assert either.add("counter", 41) == 42
    assert either.add("counter", -2) == 40
    assert either.get("counter") == b"40"
    assert either.add("counter", 0) == 40
    either.set("number", "7")
    assert either.add("number", 1) == 8


def test_counter_counts_each_call_once(either: Any) -> None:
    answers = together(*[lambda: [either.add("counter", 1) for _ in range(10)] for _ in range(8)])
    assert sorted(count for counts in answers for count in counts) == list(range(1, 81))


def test_compare_set(either: Any) -> None:
    assert either.compare_set("key", "not-there", "new") == b"not-there"
    assert not either.check(["key"])
    assert either.compare_set("key", "", "first") == b"first"
    assert either.compare_set("key", "wrong", "second") == b"first"
    assert either.compare_set("key", "first", "second") == b"second"


def test_check_and_wait(either: Any) -> None:
    either.set("one", "1")
    assert either.check(["one"])
    assert not either.check(["one", "two"])
    waiting = Pending(lambda: either.wait(["one", "two"]))
    either.set("two", "2")
    waiting.result()
    either.wait(["one", "two"], timedelta(seconds=30))


def test_many_at_once(either: Any) -> None:
    keys = [f"many/{number}" for number in range(300)]
    either.multi_set(keys, [str(number) for number in range(300)])
    assert either.multi_get(keys) == [str(number).encode() for number in range(300)]
    assert either.multi_get(["many/7", "many/3"]) == [b"7", b"3"]
    late = Pending(lambda: either.multi_get(["many/0", "late"]))
    either.set("late", "now")
    assert late.result() == [b"0", b"now"]
    assert either.has_extended_api()


def test_append(either: Any) -> None:
    either.append("key", "a")
    either.append("key", "b")
    assert either.get("key") == b"ab"


def test_delete_and_count(either: Any, store: Any) -> None:
    before = store.num_keys()
    either.set("one", "1")
    either.set("two", "2")
    assert either.num_keys() == before + 2
    assert either.delete_key("one")
    assert not either.delete_key("one")
    assert either.num_keys() == before + 1
    assert store.deleteKey("nothing") is False
    assert store.getNumKeys() == before + 1


def test_queues_and_keys(store: Any) -> None:
    # torch's PrefixStore forwards neither of them to a store that is written in Python.
    store.queue_push("queue", "first")
    store.queue_push("queue", b"second")
    assert store.queue_len("queue") == 2
    assert store.queue_pop("queue") == b"first"
    assert store.queue_pop("queue", block=False) == b"second"
    with pytest.raises(RuntimeError, match="empty"):
        store.queue_pop("queue", block=False)
    store.queue_push("full", "item")
    assert store.check(["full"])
    assert not store.check(["full", "queue"])
    store.wait(["full"], timedelta(seconds=30))
    arriving = Pending(lambda: store.clone().wait(["full", "arriving"], timedelta(seconds=30)))
    store.queue_push("arriving", "item")
    arriving.result()
    waiting = Pending(lambda: store.queue_pop("queue"))
    store.queue_push("queue", "late")
    assert waiting.result() == b"late"
    store.set("listed", "1")
    assert "listed" in store.list_keys()


def test_clones_share_keys_but_not_timeouts(store: Any) -> None:
    clone = store.clone()
    clone.set("key", "value")
    assert store.get("key") == b"value"
    clone.set_timeout(timedelta(seconds=1))
    assert store.timeout == timedelta(seconds=60)


@pytest.mark.skipif(not hasattr(PrefixStore, "clone"), reason="this torch has no Store.clone")
def test_clone_through_a_prefix_outlives_the_original(store: Any) -> None:
    clone = PrefixStore("prefix", store).clone()
    gc.collect()
    clone.set("key", "value")
    assert clone.get("key") == b"value"


@pytest.mark.parametrize("call", ["get", "wait", "wait_with_a_limit", "multi_get", "queue_pop"])
def test_timeout_raises_torchs_error(store: Any, call: str) -> None:
    store.set_timeout(timedelta(seconds=0.3))
    calls = {
        "get": lambda: store.get("never"),
        "wait": lambda: store.wait(["never"]),
        "wait_with_a_limit": lambda: store.wait(["never"], timedelta(milliseconds=100)),
        "multi_get": lambda: store.multi_get(["never", "ever"]),
        "queue_pop": lambda: store.queue_pop("never"),
    }
    with pytest.raises(dist.DistStoreError, match="timeout") as caught:
        calls[call]()
    assert caught.value.__suppress_context__


def test_timeout_through_a_prefix_raises_torchs_error(store: Any) -> None:
    prefixed = PrefixStore("prefix", store)
    prefixed.set_timeout(timedelta(seconds=0.3))
    with pytest.raises(dist.DistStoreError, match="timeout"):
        prefixed.get("never")


def test_torchs_own_helpers(service: Service, run_id: str) -> None:
    met = together(*[lambda name=f"node-{n}": enter(service.endpoint, run_id, name, 2) for n in (1, 2)])
    try:
        gathered = together(
            *[
                lambda info=info: store_utilities.synchronize(
                    info.store, str(info.rank).encode(), info.rank, 2, "sync/", timeout=30
                )
                for _, info in met
            ]
        )
        assert gathered == [[b"0", b"1"], [b"0", b"1"]]
        together(*[lambda info=info: store_utilities.barrier(info.store, 2, "barrier", 30) for _, info in met])
    finally:
        for handler, _ in met:
            handler.set_closed()
            handler.shutdown()


def _in_another_process(endpoint: str, run_id: str, answers: Any) -> None:
    handler, info = enter(endpoint, run_id, "node-2", 2)
    info.store.set("from-2", "hello")
    group = PrefixStore("gloo", info.store)
    dist.init_process_group("gloo", store=group, rank=info.rank, world_size=2)
    import torch

    tensor = torch.ones(4) * (info.rank + 1)
    dist.all_reduce(tensor)
    answers.put((info.store.get("from-1"), tensor.tolist()))
    dist.destroy_process_group()
    handler.shutdown()


def test_two_processes_and_gloo(service: Service, run_id: str) -> None:
    import torch

    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    other = context.Process(target=_in_another_process, args=(service.endpoint, run_id, answers))
    other.start()
    handler, info = enter(service.endpoint, run_id, "node-1", 2)
    try:
        info.store.set("from-1", "good day")
        group = PrefixStore("gloo", info.store)
        dist.init_process_group("gloo", store=group, rank=info.rank, world_size=2)
        tensor = torch.ones(4) * (info.rank + 1)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [3.0] * 4
        assert info.store.get("from-2") == b"hello"
        assert answers.get(timeout=60) == (b"good day", [3.0] * 4)
        dist.destroy_process_group()
    finally:
        handler.shutdown()
        other.join(30)
        answers.close()
        answers.join_thread()
    assert other.exitcode == 0
