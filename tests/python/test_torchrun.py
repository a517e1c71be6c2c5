"""Real torchrun processes, on a real etcd and on the embedded store: they form, grow, shrink, survive their service, finish.

Times are printed with the medians of five, and not asserted: the machine that runs the tests may be slow.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.certificates import Certificates
from harness.service import Service, on_etcd
from harness.torchrun import LEASE_SECONDS, Job, Line, kill_node
from harness.wait import wait_for

MakeJob = Callable[..., Job]

pytestmark = pytest.mark.timeout(300)

# What torch does with its workers, its signals and its end is the same on every service, and a story takes up to a minute and
# a half: one that is about nothing else is told once, so that the whole suite stays one that is run.
once = on_etcd


def ranks(lines: dict[str, Line]) -> dict[str, int]:
    """Which node has which rank."""
    return {name: line.group_rank for name, line in lines.items()}


def starts(job: Job) -> dict[str, int]:
    """How often each node's workers were started."""
    counts: dict[str, int] = {}
    for line in job.lines():
        if line.event == "started":
            counts[line.node] = counts.get(line.node, 0) + 1
    return counts


# --- forming and growing


def test_two_nodes_fixed(job: MakeJob) -> None:
    run = job(nnodes="2")
    run.start("node-1", workers=2)
    run.start("node-2", workers=2)
    run.wait_trains("node-1", "node-2")
    wait_for("all four workers train", lambda: sorted({line.rank for line in run.steps()}) == [0, 1, 2, 3])
    steps = run.steps()
    assert {line.world for line in steps} == {4}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert starts(run) == {"node-1": 2, "node-2": 2}


def test_growing_while_training(job: MakeJob) -> None:
    run = job(nnodes="2:4")
    run.start("node-1")
    run.start("node-2")
    two = ranks(run.wait_trains("node-1", "node-2"))
    run.start("node-3")
    three = ranks(run.wait_trains("node-1", "node-2", "node-3"))
    run.start("node-4")
    four = ranks(run.wait_trains("node-1", "node-2", "node-3", "node-4"))

    assert three == {**two, "node-3": 2}
    assert four == {**three, "node-4": 3}
    # Growing costs no restart of those that torch counts.
    assert {line.restart_count for line in run.lines()} == {0}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert "the workers restart: node-3 wants to join" in run.agents[0].log
    assert "the workers restart: node-4 wants to join" in run.agents[2].log


def test_two_jobs_without_ids_never_meet(job: MakeJob) -> None:
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
        rdzv_configs={"lease_ttl": 3, "settle_time": 0.1, "leave_on_signal": True, "node_name": name},
        monitor_interval=0.1, local_addr="127.0.0.1", max_restarts=0)
    print("answers", elastic_launch(config, train)("sum"), flush=True)
"""


@once
def test_the_launcher_as_an_api(service: Service, run_id: str, tmp_path: Path) -> None:
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


# --- losing


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
            name: run.start(name, environment={"LATTICE_RDZV_LOG": "info"}) for name in ("node-1", "node-2", "node-3")
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


# --- signals


@once
def test_a_member_is_terminated(job: MakeJob, say: Callable[[str], None]) -> None:
    run = job(nnodes="2:3")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    agents["node-3"] = run.start("node-3", stubborn_seconds=10)
    run.wait_trains(*agents)
    at = agents["node-3"].terminate()
    run.wait_log(agents["node-1"], "the workers restart: node-3 leaving", timeout_seconds=9)
    took = time.monotonic() - at
    assert agents["node-3"].process.poll() is None, "its peers are told before its workers have stopped"
    run.wait_trains("node-1", "node-2", since=at)
    assert agents["node-3"].wait() != 0
    run.finish()
    assert agents["node-1"].wait() == agents["node-2"].wait() == 0, run.describe()
    say(f"after SIGTERM to a member its peers were told within {took:.2f} s")


def test_the_first_waiter_is_terminated(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    # A lease that outlives the test: what is gone was given back.
    agent = run.start("node-1", conf={"lease_ttl": "300"})
    prefix = f"/lattice/rdzv/default/{run_id}/nodes/"
    wait_for("node-1 waits", lambda: service.keys_under(prefix), timeout_seconds=60, detail=run.describe)
    agent.terminate()
    assert agent.wait(20) != 0
    assert "SIGTERM" in agent.log
    wait_for("nothing of it is left", lambda: not service.keys_under(prefix), detail=run.describe)


@once
def test_a_spare_is_terminated(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    spare = run.start("spare")
    prefix = f"/lattice/rdzv/default/{run_id}/nodes/"
    wait_for("the spare waits", lambda: len(service.keys_under(prefix)) == 3, timeout_seconds=60, detail=run.describe)
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
    prefix = f"/lattice/rdzv/default/{run_id}/nodes/"
    wait_for("node-1 waits", lambda: service.keys_under(prefix), timeout_seconds=60, detail=run.describe)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[0]), 15)
    assert agent.wait(20) != 0
    wait_for("nothing of it is left", lambda: not service.keys_under(prefix), detail=run.describe)


# --- the end


@once
def test_a_worker_fails_and_restarts(job: MakeJob) -> None:
    run = job(nnodes="2")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    run.wait_trains(*agents)
    at = time.monotonic()
    run.fail("node-2")
    wait_for("node-2's worker fails", lambda: any(line.event == "failing" for line in run.lines()), detail=run.describe)
    run.mend("node-2")
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
    # Up to 2.7 torch says that the agent is done before it says why.
    early = torch_version() < (2, 8)
    reason = "its agent ended without success" if early else "failed with exit code 3"
    assert re.search(rf"node-2.*{reason}", agents["node-1"].log), run.describe()


@once
def test_one_node_ends_later_than_the_others(job: MakeJob) -> None:
    run = job(nnodes="2:3")
    run.start("node-1")
    run.start("node-2")
    run.start("late", linger_seconds=10)
    run.wait_trains("node-1", "node-2", "late")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert set(starts(run).values()) == {1}


def test_a_spare_comes_in_when_a_member_dies(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    agents = {name: run.start(name) for name in ("node-1", "node-2")}
    before = ranks(run.wait_trains(*agents))
    spare = run.start("spare")
    prefix = f"/lattice/rdzv/default/{run_id}/nodes/"
    wait_for("the spare waits", lambda: len(service.keys_under(prefix)) == 3, timeout_seconds=60, detail=run.describe)
    at = kill_node(run, agents["node-1"])
    after = ranks(run.wait_trains("node-2", "spare", since=at))
    assert after == {"node-2": before["node-2"], "spare": before["node-1"]}
    run.finish()
    assert agents["node-2"].wait() == spare.wait() == 0, run.describe()


@once
def test_a_spare_is_dismissed_with_status_0(job: MakeJob, service: Service, run_id: str) -> None:
    run = job(nnodes="2")
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    run.start("spare")
    prefix = f"/lattice/rdzv/default/{run_id}/nodes/"
    wait_for("the spare waits", lambda: len(service.keys_under(prefix)) == 3, timeout_seconds=60, detail=run.describe)
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert "spare" not in starts(run)


def test_the_same_run_id_again_at_once(job: MakeJob) -> None:
    for submission in ("first", "second"):
        run = job(nnodes="2", environment={"LATTICE_RDZV_SUBMISSION": submission})
        run.start("node-1")
        run.start("node-2")
        run.wait_trains("node-1", "node-2")
        run.finish()
        assert set(run.wait_all().values()) == {0}, run.describe()


@once
def test_the_same_submission_again_says_so_and_ends_with_status_0(job: MakeJob) -> None:
    run = job(nnodes="1", environment={"LATTICE_RDZV_SUBMISSION": "only"})
    run.start("node-1")
    run.wait_trains("node-1")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    again = run.start("node-1")
    assert again.wait() == 0, run.describe()
    assert "succeeded" in again.log
    assert starts(run) == {"node-1": 1}


def test_a_replacement_of_the_same_name_takes_its_rank(job: MakeJob) -> None:
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


# --- the service


@pytest.mark.parametrize("fault", ["killed", "paused", "wiped"])
def test_the_service_is_lost_and_nobody_restarts(job: MakeJob, own_service: Service, fault: str) -> None:
    run = job(nnodes="2:3", endpoint=own_service.endpoint)
    run.start("node-1")
    run.start("node-2")
    before = ranks(run.wait_trains("node-1", "node-2"))

    if fault == "killed":
        # An etcd comes back with what it held, the embedded store with nothing.
        own_service.kill()
        _let_pass(30)
        own_service.start()
    elif fault == "paused":
        own_service.pause()
        _let_pass(3 * LEASE_SECONDS)
        own_service.resume()
    else:
        own_service.wipe()
    nodes = f"/lattice/rdzv/default/{run.run_id}/nodes/"
    wait_for(
        "both nodes are back", lambda: len(own_service.keys_under(nodes)) == 2, timeout_seconds=60, detail=run.describe
    )
    assert starts(run) == {"node-1": 1, "node-2": 1}

    run.start("node-3")
    after = ranks(run.wait_trains("node-1", "node-2", "node-3"))
    assert after == {**before, "node-3": 2}
    assert starts(run) == {"node-1": 2, "node-2": 2, "node-3": 1}
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()


def _let_pass(seconds: float) -> None:
    # The one thing that is waited for is time itself: a lease that must run out.
    deadline = time.monotonic() + seconds
    wait_for(f"{seconds:g} s have passed", lambda: time.monotonic() > deadline, timeout_seconds=seconds + 5)


def test_the_service_is_gone_for_good_and_the_job_still_ends(job: MakeJob, own_service: Service) -> None:
    run = job(nnodes="1", endpoint=own_service.endpoint, environment={"LOGLEVEL": "INFO"})
    agent = run.start("node-1", conf={"close_timeout": "3"})
    run.wait_trains("node-1")
    own_service.kill()
    run.finish()
    # torch gives its exit barrier 300 s and swallows the error; a signal ends it earlier.
    run.wait_log(agent, "Waiting 300 seconds for other agents to finish")
    agent.terminate()
    agent.wait(40)


# --- credentials


def test_mutual_tls(job: MakeJob, mtls_service: Service, certificates: Certificates) -> None:
    files = {
        "LATTICE_RDZV_CACERT": str(certificates.authority),
        "LATTICE_RDZV_CERT": str(certificates.client),
        "LATTICE_RDZV_KEY": str(certificates.client_key),
    }
    run = job(nnodes="2", endpoint=mtls_service.endpoint, environment=files)
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()


def test_a_password(job: MakeJob, own_service: Service, tmp_path: Path) -> None:
    own_service.need_password("agent", "s3cret")
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    environment = {"LATTICE_RDZV_USER": "agent", "LATTICE_RDZV_PASSWORD_FILE": str(file)}
    run = job(nnodes="2", endpoint=own_service.endpoint, environment=environment)
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
    assert not any("s3cret" in agent.log for agent in run.agents)
