"""Signals to real torchrun processes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.service import Service
from harness.torchrun import MakeJob, once, starts
from harness.wait import wait_for

pytestmark = pytest.mark.timeout(500)


@once
def test_member_is_terminated(job: MakeJob, say: Callable[[str], None]) -> None:
    run = job(nnodes="2:3")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    agents["node-3"] = run.start("node-3", stubborn_seconds=28)
    run.wait_trains(*agents)
    at = agents["node-3"].terminate()
    run.wait_log(agents["node-1"], "the workers restart: node-3 leaving", timeout_seconds=20)
    took = time.monotonic() - at
    assert agents["node-3"].process.poll() is None, "its peers receive the change before its workers have stopped"
    run.wait_trains("node-1", "node-2", since=at)
    assert agents["node-3"].wait() != 0
    run.finish()
    assert agents["node-1"].wait() == agents["node-2"].wait() == 0, run.describe()
    say(f"after SIGTERM to a member, its peers received the change within {took:.2f} s")


@once
def test_first_waiting_node_is_terminated(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    # The lease outlives the test, so the keys can only disappear if the node revokes it.
    agent = run.start("node-1", conf={"lease_ttl": "300"})
    wait_for("node-1 waits", lambda: service.nodes(run_id), timeout_seconds=60, detail=run.describe)
    agent.terminate()
    assert agent.wait(20) != 0
    assert "SIGTERM" in agent.log
    wait_for("its record is deleted", lambda: not service.nodes(run_id), detail=run.describe)


@once
def test_spare_is_terminated(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    spare = run.start("spare")
    wait_for("the spare waits", lambda: len(service.nodes(run_id)) == 3, timeout_seconds=60, detail=run.describe)
    spare.terminate()
    assert spare.wait(20) != 0
    run.finish()
    assert run.agents[0].wait() == run.agents[1].wait() == 0, run.describe()
    assert starts(run) == {"node-1": 1, "node-2": 1}


@once
@pytest.mark.namespaces
def test_torchrun_as_process_1_is_terminated(job: MakeJob, service: Service, run_id: str) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a process namespace needs root and unshare")
    run = job(nnodes="2")
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    agent = run.start("node-1", conf={"lease_ttl": "300"}, wrapper=unshare)
    wait_for("node-1 waits", lambda: service.nodes(run_id), timeout_seconds=60, detail=run.describe)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[0]), 15)
    assert agent.wait(20) != 0
    wait_for("its record is deleted", lambda: not service.nodes(run_id), detail=run.describe)
