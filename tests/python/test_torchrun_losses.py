"""Jobs of real torchrun processes lose one of them."""

from __future__ import annotations

import pytest
from harness.service import Service
from harness.torchrun import MakeJob, kill_node, once, ranks
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(500)


@once
@pytest.mark.parametrize(("victim_rank", "how"), [(1, "agent alone"), (0, "agent and workers")])
def test_losing_a_node(job: MakeJob, victim_rank: int, how: str) -> None:
    run = job(nnodes="2:3", gloo=True)
    agents = {name: run.start(name) for name in ("node-1", "node-2", "node-3")}
    before = ranks(run.wait_trains(*agents))
    victim = next(name for name, rank in before.items() if rank == victim_rank)

    at = agents[victim].kill() if how == "agent alone" else kill_node(run, agents[victim])
    rest = [name for name in agents if name != victim]
    after = run.wait_trains(*rest, since=at)

    assert {line.group_world for line in after.values()} == {2}
    assert sorted(line.group_rank for line in after.values()) == [0, 1]
    kept = [name for name in rest if before[name] < 2]
    assert all(after[name].group_rank == before[name] for name in kept)
    # Workers may fail because of the dead peer first. In this case, the reason of the round names the loss.
    for name in rest:
        run.wait_log(agents[name], f"lost {victim}")
    run.finish()
    assert {agents[name].wait() for name in rest} == {0}, run.describe()


def test_losing_the_coordinator(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2:3")
    # The first node becomes coordinator.
    agents = {"node-1": run.start("node-1")}
    wait_for(
        "node-1 is the coordinator",
        lambda: service.get(f"/lattice/rdzv/default/{run_id}/ctl/coordinator"),
        timeout_seconds=60,
    )
    agents |= {name: run.start(name) for name in ("node-2", "node-3")}
    run.wait_trains(*agents)
    at = kill_node(run, agents["node-1"])
    run.wait_trains("node-2", "node-3", since=at)
    run.finish()
    assert agents["node-2"].wait() == agents["node-3"].wait() == 0, run.describe()
