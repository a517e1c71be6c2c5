"""The worker rank exchange of torch's agents, in a round that ends during the exchange."""

from __future__ import annotations

import json

import pytest
from harness.handlers import MakeHandler, fail, form_round, leave, node
from harness.together import Pending
from harness.wait import wait_for
from torch.distributed.elastic.agent.server import api as agent
from torch.distributed.elastic.rendezvous import RendezvousClosedError
from torch.distributed.elastic.utils import store as store_utilities

from lattice_rdzv.torch.exchange import ASSIGNED_RANKS, ROLE_INFO
from lattice_rdzv.torch.exit_barrier import EXIT_BARRIER_COUNT, EXIT_BARRIER_FULL


def test_keys_are_those_of_torchs_agents() -> None:
    assert EXIT_BARRIER_COUNT == agent._TERMINAL_STATE_SYNC_ID + store_utilities._NUM_MEMBERS
    assert EXIT_BARRIER_FULL == agent._TERMINAL_STATE_SYNC_ID + store_utilities._LAST_MEMBER_CHECKIN
    source = agent.__loader__.get_source(agent.__name__)  # type: ignore[union-attr]
    assert ROLE_INFO in source
    assert ASSIGNED_RANKS in source


def test_placeholders_complete_the_exchange_of_a_round_that_lost_a_member(make: MakeHandler) -> None:
    handlers = [make(f"node-{number}", min_nodes=2, max_nodes=2) for number in (1, 2)]
    met = zip(handlers, form_round(*handlers), strict=True)
    (staying, info), (leaving, _) = sorted(met, key=lambda one: one[1].rank)
    info.store.set(f"{ROLE_INFO}0", json.dumps({"role": "trainer", "rank": 0, "local_world_size": 4}))
    reading = Pending(lambda: info.store.multi_get([f"{ROLE_INFO}{rank}" for rank in (0, 1)]))
    leave(leaving)
    roles = [agent._RoleInstanceInfo.deserialize(value) for value in reading.result()]
    assert [(role.role, role.rank, role.local_world_size) for role in roles] == [("trainer", 0, 4), ("trainer", 1, 4)]
    assert json.loads(info.store.get(f"{ASSIGNED_RANKS}0")) == [0, 8, 0, 8]
    assert json.loads(info.store.get(f"{ASSIGNED_RANKS}1")) == [4, 8, 4, 8]
    assert staying.num_nodes_waiting() == 1


def test_exchange_continues_after_the_session_has_ended(make: MakeHandler) -> None:
    first, second = make("node-1", min_nodes=2, max_nodes=2), make("node-2", min_nodes=2, max_nodes=2)
    info = form_round(first, second)[1]
    store = info.store
    own = f"{ROLE_INFO}{info.rank}", json.dumps({"role": "trainer", "rank": 0, "local_world_size": 2})
    store.set(*own)
    fail(first, exit_code=3)
    wait_for("node-2 receives the change", lambda: second.num_nodes_waiting() == 1)
    with pytest.raises(RendezvousClosedError):
        second.next_rendezvous()
    node(second).leave().wait()
    assert second.num_nodes_waiting() == 1
    store.set(*own)
    store.multi_set([f"{ASSIGNED_RANKS}{rank}" for rank in (0, 1)], [b"[]", b"[]"])
    assert json.loads(store.get(f"{ASSIGNED_RANKS}1")) == [2, 4, 2, 4]
    infos = store.multi_get([f"{ROLE_INFO}{rank}" for rank in (0, 1)])
    assert [json.loads(info)["local_world_size"] for info in infos] == [2, 2]
    # Other operations fail with the reason.
    with pytest.raises(RuntimeError, match="has left"):
        store.set("else", b"")
