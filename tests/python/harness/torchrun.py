"""Real torchrun agents, each in a separate session, and the output of their workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness import job_process
from harness.paused import pause
from harness.service import on_etcd
from harness.wait import wait_for

TRAIN = Path(__file__).parent / "train.py"
# Survives a pause of 5 s on a machine under load. Lifelines report the deaths of these tests earlier.
LEASE_SECONDS = 10.0
# The time to import torch in every agent and worker, on two cores.
START_SECONDS = 150.0

# torch handles workers, signals and its end in the same way with every service. A scenario about these takes up to 90 s, so it
# runs with one service only. Otherwise, the whole suite would be too slow to run regularly.
once = on_etcd


@dataclass(frozen=True)
class Line:
    """One line of a worker."""

    event: str
    node: str
    pid: int
    rank: int
    world: int
    group_rank: int
    group_world: int
    restart_count: int
    master_port: int
    at: float
    step: int = 0


@dataclass
class Agent:
    """One torchrun."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    command: list[str] = field(repr=False)

    @property
    def log(self) -> str:
        """The output of the agent and its workers to stdout and stderr."""
        return self.log_file.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout_seconds: float = 120.0) -> int:
        """Waits for its end and returns its status."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_seconds:g} s\n{self.log[-4000:]}") from None

    def kill(self) -> float:
        """Sends SIGKILL only to the agent, so its workers continue. Returns the time."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at

    def terminate(self) -> float:
        """Sends SIGTERM to the agent. Returns the time."""
        at = time.monotonic()
        self.process.terminate()
        return at


class Job:
    """A run of real agents, and the file that their workers write."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        run_id: str,
        *,
        nnodes: str,
        environment: dict[str, str] | None = None,
        gloo: bool = False,
    ) -> None:
        """`gloo`: the workers communicate, see `train.py`."""
        self.gloo = gloo
        self.folder = folder
        self.endpoint = endpoint
        self.run_id = run_id
        self.nnodes = nnodes
        self.environment = environment or {}
        self.out = folder / "steps.jsonl"
        self.out.touch()
        self.until = folder / "until"
        self.agents: list[Agent] = []

    def start(
        self,
        name: str,
        *,
        max_restarts: int = 3,
        workers: int = 1,
        linger_seconds: float = 0.0,
        stubborn_seconds: float = 0.0,
        conf: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        address: str = "127.0.0.1",
        endpoint: str | None = None,
        backend: str = "lattice",
        options: tuple[str, ...] = (),
    ) -> Agent:
        """Starts an agent with the name `name`, which its peers reach at `address`, with these options of torchrun."""
        settings = {"lease_ttl": f"{LEASE_SECONDS:g}", "node_name": name, "last_call_timeout": "1", "grow_delay": "0.2"}
        settings.update(conf or {})
        command = [
            *wrapper,
            sys.executable, "-m", "torch.distributed.run",
            "--rdzv-backend", backend,
            "--rdzv-endpoint", self.endpoint if endpoint is None else endpoint,
            "--rdzv-id", self.run_id,
            "--nnodes", self.nnodes,
            "--nproc-per-node", str(workers),
            "--max-restarts", str(max_restarts),
            "--local-addr", address,
            *options,
            "--rdzv-conf", ",".join(f"{key}={value}" for key, value in settings.items()),
            str(TRAIN),
            "--out", str(self.out),
            "--until", str(self.until),
            "--called", name,
            "--linger-seconds", str(linger_seconds),
            "--stubborn-seconds", str(stubborn_seconds),
            *(["--gloo"] if self.gloo else []),
        ]  # fmt: skip
        log_file = self.folder / f"{name}-{len(self.agents)}.log"
        # A killed torchrun leaves files, which are deleted with the test's folder.
        variables = {"TMPDIR": str(self.folder), **self.environment, **(environment or {})}
        process = job_process.start(command, log_file, variables)
        agent = Agent(name, process, log_file, command)
        self.agents.append(agent)
        return agent

    def lines(self) -> list[Line]:
        """Returns the lines that the workers have written so far."""
        return [Line(**json.loads(line)) for line in self.out.read_text().splitlines() if line.endswith("}")]

    def steps(self, since: float = 0.0) -> list[Line]:
        """Returns the first step of each worker in each world, since a time of the monotonic clock."""
        return [line for line in self.lines() if line.event == "step" and line.at >= since]

    def wait_trains(self, *names: str, since: float = 0.0, timeout_seconds: float = START_SECONDS) -> dict[str, Line]:
        """Waits until exactly these nodes train together in one world. Returns each node's first step in that world."""

        def trains() -> dict[str, Line] | None:
            for agent in {agent.name: agent for agent in self.agents}.values():
                ended = agent.name in names and agent.process.poll() is not None
                assert not ended, f"{agent.name} has ended, and should train\n{self.describe()}"
            newest: dict[str, Line] = {}
            for line in self.steps(since):
                newest[line.node] = line
            chosen = {name: newest[name] for name in names if name in newest}
            complete = len(chosen) == len(names) and all(line.group_world == len(names) for line in chosen.values())
            together = len({line.master_port for line in chosen.values()}) == 1
            return chosen if complete and together else None

        return wait_for(
            f"{', '.join(names)} train together", trains, timeout_seconds=timeout_seconds, detail=self.describe
        )

    def wait_log(self, agent: Agent, text: str, *, timeout_seconds: float = START_SECONDS) -> None:
        """Waits until the log of an agent contains a text."""
        wait_for(
            f"{agent.name} writes `{text}`",
            lambda: text in agent.log,
            timeout_seconds=timeout_seconds,
            detail=self.describe,
        )

    def finish(self) -> None:
        """Makes the workers end with success."""
        self.until.touch()

    def fail(self, name: str) -> None:
        """Makes the workers of one node fail, until `stop_failing`."""
        Path(f"{self.until}.fail-{name}").touch()

    def stop_failing(self, name: str) -> None:
        """Makes the workers of a node train again."""
        Path(f"{self.until}.fail-{name}").unlink()

    def wait_all(self, timeout_seconds: float = 120.0) -> dict[str, int]:
        """Waits for the end of every agent. Returns the statuses by name."""
        return {agent.name: agent.wait(timeout_seconds) for agent in self.agents}

    def describe(self) -> str:
        """Returns the last lines and logs, which are shown when a test fails."""
        parts = [f"{line}" for line in self.lines()[-20:]]
        parts += [f"--- {one.name}, status {one.process.poll()}\n{one.log[-3000:]}" for one in self.agents]
        return "\n".join(parts)

    def end(self) -> None:
        """Ends all processes of the job."""
        for agent in self.agents:
            with suppress(ProcessLookupError):
                os.killpg(agent.process.pid, signal.SIGKILL)
            agent.process.wait()
        # Workers are in separate sessions, so that they continue to run when only their agent is killed.
        for pid in {line.pid for line in self.lines()}:
            if str(self.out) in _command_line(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


MakeJob = Callable[..., Job]


def kill_node(job: Job, agent: Agent) -> float:
    """Sends SIGKILL to an agent and its workers at once, as if the machine were lost. Returns the time."""
    at = time.monotonic()
    pause(agent.process)
    pids = {line.pid for line in job.lines() if line.node == agent.name}
    with suppress(ProcessLookupError):
        os.killpg(agent.pid, signal.SIGKILL)
    for pid in pids:
        if str(job.out) in _command_line(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    agent.process.wait()
    return at


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def ranks(lines: dict[str, Line]) -> dict[str, int]:
    """Returns the rank of each node."""
    return {name: line.group_rank for name, line in lines.items()}


def starts(job: Job) -> dict[str, int]:
    """Returns how often each node's workers were started."""
    counts: dict[str, int] = {}
    for line in job.lines():
        if line.event == "started":
            counts[line.node] = counts.get(line.node, 0) + 1
    return counts


def two_train_to_the_end(run: Job) -> None:
    """A job of two nodes is started, trains, and ends with success."""
    run.start("node-1")
    run.start("node-2")
    run.wait_trains("node-1", "node-2")
    run.finish()
    assert set(run.wait_all().values()) == {0}, run.describe()
