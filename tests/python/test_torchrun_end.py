"""The ends of jobs of real torchrun processes."""

from __future__ import annotations

import importlib.metadata
import re
import time

import pytest
from harness.service import Service
from harness.torchrun import MakeJob, kill_node, once, ranks, starts, two_train_to_the_end
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(500)


@once
def test_worker_fails_and_restarts(job: MakeJob) -> None:
    run = job(nnodes="2")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    run.wait_trains(*agents)
    at = time.monotonic()
    run.fail("node-2")
    wait_for("node-2's worker fails", lambda: any(line.event == "failing" for line in run.lines()), detail=run.describe)
    run.stop_failing("node-2")
    run.wait_trains(*agents, since=at)
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()


def torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("torch").split(".")[:2])


@once
def test_no_restarts_left_ends_every_agent_and_names_the_node(job: MakeJob) -> None:
    run = job(nnodes="2")
    agents = {"node-1": run.start("node-1", max_restarts=3), "node-2": run.start("node-2", max_restarts=0)}
    run.wait_trains(*agents)
    run.fail("node-2")
    statuses = run.wait_all()
    assert all(status != 0 for status in statuses.values()), run.describe()
    assert "RendezvousClosedError" in agents["node-1"].log
    # Up to 2.7, torch's agent calls `shutdown` before torchrun knows the exit code.
    early = torch_version() < (2, 8)
    reason = "a worker failed" if early else "failed with exit code 3"
    assert re.search(rf"node-2.*{reason}", agents["node-1"].log), run.describe()


@once
def test_one_node_ends_later_than_the_others(job: MakeJob) -> None:
    run = job(nnodes="2:3")
    # With a short timeout, two of them may begin without a third one that starts later.
    together = {"last_call_timeout": "60"}
    run.start("node-1", conf=together)
    run.start("node-2", conf=together)
    run.start("late", conf=together, linger_seconds=10)
    run.wait_trains("node-1", "node-2", "late")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert set(starts(run).values()) == {1}


@once
def test_spare_replaces_a_member_that_dies(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    before = ranks(run.wait_trains(*agents))
    spare = run.start("spare")
    wait_for("the spare waits", lambda: len(service.nodes(run_id)) == 3, timeout_seconds=60, detail=run.describe)
    at = kill_node(run, agents["node-1"])
    after = ranks(run.wait_trains("node-2", "spare", since=at))
    assert after == {"node-2": before["node-2"], "spare": before["node-1"]}
    run.finish()
    assert agents["node-2"].wait() == spare.wait() == 0, run.describe()


@once
def test_spare_is_dismissed_with_status_0(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    run.start("spare")
    wait_for("the spare waits", lambda: len(service.nodes(run_id)) == 3, timeout_seconds=60, detail=run.describe)
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert "spare" not in starts(run)


@once
def test_run_id_can_be_reused_at_once(job: MakeJob) -> None:
    for submission in ("first", "second"):
        run = job(nnodes="2", environment={"LATTICE_RDZV_SUBMISSION": submission})
        two_train_to_the_end(run)


@once
def test_repeated_submission_exits_with_status_0_and_the_reason(job: MakeJob) -> None:
    run = job(nnodes="1", environment={"LATTICE_RDZV_SUBMISSION": "only"})
    run.start("node-1")
    run.wait_trains("node-1")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    again = run.start("node-1")
    assert again.wait() == 0, run.describe()
    assert "succeeded" in again.log
    assert starts(run) == {"node-1": 1}


@once
def test_replacement_of_the_same_name_takes_its_rank(job: MakeJob) -> None:
    run = job(nnodes="2:3")
    agents = {name: run.start(name) for name in ("node-1", "node-2", "node-3")}
    before = ranks(run.wait_trains(*agents))
    victim = next(name for name, rank in before.items() if rank == 1)
    at = kill_node(run, agents[victim])
    rest = [name for name in agents if name != victim]
    run.wait_trains(*rest, since=at)
    since = time.monotonic()
    run.start(victim)
    after = ranks(run.wait_trains(*agents, since=since))
    assert sorted(after.values()) == [0, 1, 2]
    run.finish()
    assert all(agent.wait() == 0 for agent in run.agents if agent.process.returncode != -9), run.describe()
