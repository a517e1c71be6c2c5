"""Pops that are ended at any moment, by a time limit or a cancelled task, lose no item."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from typing import Any

import pytest
from conftest import JoinNode
from harness.service import Service
from harness.slow import SlowLink

import lattice_rdzv
from lattice_rdzv import aio

ITEMS = 300
LONGEST_POP_SECONDS = 0.004


def pushed(store: lattice_rdzv.Store) -> list[bytes]:
    items = [str(number).encode() for number in range(ITEMS)]
    for item in items:
        store.queue_push("queue", item)
    return sorted(items)


def test_time_limits_lose_no_item(join: JoinNode) -> None:
    store = join("node-1", nnodes=1).next_world().store
    expected = pushed(store)
    received: list[bytes] = []
    for _ in range(ITEMS):
        with contextlib.suppress(lattice_rdzv.StoreTimeoutError):
            item = store.queue_pop("queue", timeout_seconds=random.uniform(0.0, LONGEST_POP_SECONDS))
            assert item is not None
            received.append(item)
    while (item := store.queue_pop("queue", block=False)) is not None:
        received.append(item)
    assert sorted(received) == expected


def test_cancelled_tasks_lose_no_item(etcd: Service, run_id: str) -> None:
    async def scenario() -> tuple[list[bytes], list[bytes]]:
        settings: dict[str, Any] = {"nnodes": 1, "endpoint": etcd.endpoint, "node_name": "node-1", "settle_time": 0.1}
        async with await aio.join(run_id, **settings) as run:
            world = await run.next_world()
            store = world.store
            expected = sorted(str(number).encode() for number in range(ITEMS))
            for value in expected:
                await store.queue_push("queue", value)
            received: list[bytes] = []
            for _ in range(ITEMS):
                popping = asyncio.ensure_future(store.queue_pop("queue"))
                await asyncio.wait([popping], timeout=random.uniform(0.0, LONGEST_POP_SECONDS))
                popping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    item = await popping
                    assert item is not None
                    received.append(item)
            while (item := await store.queue_pop("queue", block=False)) is not None:
                received.append(item)
            return sorted(received), expected

    received, expected = asyncio.run(scenario())
    assert received == expected


class Interrupt(Exception):
    """Raised by the handler of a signal."""


def test_exception_of_a_signal_in_the_middle_of_a_take_loses_no_item(etcd: Service, run_id: str) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    link = SlowLink(int(etcd.endpoint.rsplit(":", 1)[1]))
    run = lattice_rdzv.join(run_id, nnodes=1, endpoint=link.endpoint, node_name="node-1", settle_time=0.1)
    store = run.next_world().store
    store.queue_push("queue", b"item")
    link.seconds = 0.4
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        # The take is on its way to the service.
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            store.queue_pop("queue")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    link.seconds = 0.0
    assert store.queue_pop("queue", timeout_seconds=30) == b"item"
    run.leave()
    link.close()


def test_kept_item_goes_back_to_its_queue_when_the_node_leaves(join: JoinNode) -> None:
    first, second = join("node-1", nnodes="1:2"), join("node-2", nnodes="1:2")
    store = first.store
    store.queue_push("queue", b"item")
    item = store.queue_pop("queue")
    assert item == b"item"
    store.queue_keep("queue", item)
    first.leave()
    assert second.store.queue_pop("queue", timeout_seconds=20) == b"item"
