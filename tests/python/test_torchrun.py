"""Jobs of real torchrun processes form worlds and grow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.service import Service
from harness.torchrun import START_SECONDS, MakeJob, kill_node, once, ranks, starts
from harness.wait import wait_for

import lattice_rdzv

pytestmark = pytest.mark.timeout(500)


def test_two_nodes_fixed(job: MakeJob) -> None:
    run = job(nnodes="2", gloo=True)
    run.start("node-1", workers=2)
    run.start("node-2", workers=2)
    run.wait_trains("node-1", "node-2")
    wait_for("all four workers train", lambda: sorted({line.rank for line in run.steps()}) == [0, 1, 2, 3])
    steps = run.steps()
    assert {line.world for line in steps} == {4}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert starts(run) == {"node-1": 2, "node-2": 2}


@once
def test_ranks_follow_the_node_index_and_not_arrival(job: MakeJob) -> None:
    run = job(nnodes="3")

    def arrived(name: str) -> bool:
        nodes = lattice_rdzv.status(run.run_id, endpoint=run.endpoint, timeout_seconds=30).nodes
        return any(node.name == name for node in nodes)

    run.start("last", options=("--node-rank", "2"))
    wait_for("the node with index 2 arrives", lambda: arrived("last"), timeout_seconds=START_SECONDS)
    run.start("middle", environment={"JOB_COMPLETION_INDEX": "1"})
    wait_for("the node with index 1 arrives", lambda: arrived("middle"), timeout_seconds=START_SECONDS)
    run.start("first", options=("--node_rank=0",), environment={"JOB_COMPLETION_INDEX": "7"})
    assert ranks(run.wait_trains("first", "middle", "last")) == {"first": 0, "middle": 1, "last": 2}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()


@once
def test_growing_while_training(job: MakeJob) -> None:
    run = job(nnodes="2:4", gloo=True)
    run.start("node-1")
    run.start("node-2")
    two = ranks(run.wait_trains("node-1", "node-2"))
    run.start("node-3")
    three = ranks(run.wait_trains("node-1", "node-2", "node-3"))
    run.start("node-4")
    four = ranks(run.wait_trains("node-1", "node-2", "node-3", "node-4"))

    assert three == {**two, "node-3": 2}
    assert four == {**three, "node-4": 3}
    # torch does not count the growth as a restart.
    assert {line.restart_count for line in run.lines()} == {0}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    run.wait_log(run.agents[0], "the workers restart: node-3 wants to join")
    run.wait_log(run.agents[2], "the workers restart: node-4 wants to join")


@once
def test_job_trains_at_allowed_sizes_only(job: MakeJob) -> None:
    run = job(nnodes="1:4")
    sizes = {"sizes": "2:4", "settle_time": "0.1"}
    agents = {name: run.start(name, conf=sizes) for name in ("node-1", "node-2", "node-3", "node-4")}
    run.wait_trains(*agents)
    assert {line.group_world for line in run.lines()} <= {2, 4}

    at = kill_node(run, agents.pop("node-4"))

    def pair_trains() -> set[str] | None:
        steps = [line for line in run.steps(at) if line.group_world == 2]
        nodes = {line.node for line in steps if line.master_port == steps[-1].master_port}
        return nodes if len(nodes) == 2 else None

    pair = wait_for("two of three nodes train", pair_trains, timeout_seconds=START_SECONDS, detail=run.describe)
    (spare,) = set(agents) - pair
    run.wait_log(agents[spare], "and this node is a spare: 3 nodes here, 2 used, the next size is 4")
    run.start("node-4", conf=sizes)
    run.wait_trains(*agents, "node-4", since=time.monotonic())
    assert {line.group_world for line in run.lines()} <= {2, 4}
    run.finish()
    assert [agent.wait() for agent in run.agents if agent.process.returncode != -signal.SIGKILL] == [0] * 4


@once
def test_two_jobs_without_ids_never_share_a_run(job: MakeJob) -> None:
    jobs = [job(nnodes="1:2", run_id="none") for _ in range(2)]
    agents = [run.start("node-1") for run in jobs]
    for agent in agents:
        assert agent.wait() != 0
        assert "--rdzv-id" in agent.log
    assert not any(run.lines() for run in jobs)


LAUNCH = """
import os, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def train(word):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return f"{word} {int(total.item())}"

if __name__ == "__main__":
    endpoint, run_id, name = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=2, max_nodes=2, nproc_per_node=1, run_id=run_id, rdzv_backend="lattice", rdzv_endpoint=endpoint,
        rdzv_configs={"lease_ttl": 10, "settle_time": 0.1, "leave_on_signal": True, "node_name": name},
        monitor_interval=0.1, local_addr="127.0.0.1", max_restarts=0)
    print("answers", elastic_launch(config, train)("sum"), flush=True)
"""


@once
def test_launcher_as_an_api(service: Service, run_id: str, tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    nodes = [
        subprocess.Popen(
            [sys.executable, str(script), service.endpoint, run_id, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in ("node-1", "node-2")
    ]
    try:
        answers = [node.communicate(timeout=120) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], answers
    assert sorted(out.split("answers ")[1].strip() for out, _ in answers) == ["{0: 'sum 2'}", "{1: 'sum 2'}"]
