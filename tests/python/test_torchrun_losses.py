"""Real torchrun processes lose one of them.

Times are printed with the medians of five, and not asserted: the machine that runs the tests may be slow.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import pytest
from harness.service import Service
from harness.torchrun import LEASE_SECONDS, MakeJob, kill_node, once, ranks
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("victim_rank", [0, 1])
@pytest.mark.parametrize("how", ["agent alone", "agent and workers"])
def test_losing_a_node(job: MakeJob, victim_rank: int, how: str) -> None:
    run = job(nnodes="2:3")
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
    # Workers that fail on a dead peer may come first; then the loss is in the reason of the round.
    assert all(f"lost {victim}" in agents[name].log for name in rest), run.describe()
    run.finish()
    assert {agents[name].wait() for name in rest} == {0}, run.describe()


@once
def test_five_losses_and_what_they_take(job: MakeJob, say: Callable[[str], None]) -> None:
    told: list[float] = []
    # A worker is started as soon as its agent has a rank; what its Python takes to come up is in here, too.
    ranked: list[float] = []
    for number in range(5):
        run = job(nnodes="2:3", run_id=f"losses-{os.getpid()}-{number}-{time.monotonic_ns()}")
        agents = {
            # Or two of them may begin without a third that takes longer to start.
            name: run.start(name, environment={"LATTICE_RDZV_LOG": "info"}, conf={"last_call_timeout": "60"})
            for name in ("node-1", "node-2", "node-3")
        }
        run.wait_trains(*agents)
        at = agents["node-2"].kill()
        run.wait_log(agents["node-1"], "the workers restart")
        told.append(time.monotonic() - at)
        wait_for(
            "node-1's workers are started again",
            lambda run=run, at=at: any(line.event == "started" and line.at > at for line in run.lines()),  # type: ignore[misc]
            detail=run.describe,
        )
        ranked.append(min(line.at for line in run.lines() if line.event == "started" and line.at > at) - at)
        run.wait_trains("node-1", "node-3", since=at)
        run.finish()
        assert agents["node-1"].wait() == agents["node-3"].wait() == 0, run.describe()
        run.end()
    say(
        f"lease {LEASE_SECONDS:g} s; after a loss: told {statistics.median(told):.2f} s, "
        f"workers started {statistics.median(ranked):.2f} s (medians of five; told {_all(told)}; started {_all(ranked)})"
    )


def _all(times: list[float]) -> str:
    return " ".join(f"{one:.2f}" for one in times)


def test_losing_the_coordinator(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2:3")
    # The first to come takes the office.
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
