"""The demo's agents, one `torchrun` for each node, and the events that their workers report in the folder of the demo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .terminal import coloured

RUN_ID = "demo"
NNODES = "2:4"
# Short waits keep the demo short. A real job keeps the defaults.
RENDEZVOUS_CONF = "lease_ttl=3,grow_delay=0.5,last_call_timeout=1,join_timeout=60"
STEP_DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.05


class ScenarioError(Exception):
    """A step of the scenario failed."""


@dataclass
class Job:
    """The agents, and the events that their workers reported."""

    folder: Path
    endpoint: str
    agents: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    workers: dict[int, int] = field(default_factory=dict)
    worlds: list[list[int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step: int = 0
    started: float = field(default_factory=time.monotonic)
    _read: int = 0

    @property
    def seconds(self) -> float:
        """Seconds since the demo started."""
        return time.monotonic() - self.started

    def start(self, node: int) -> None:
        """Starts another agent in its own process group."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PET_", "LATTICE_", "TORCHELASTIC_"))
        }
        environment.update(
            # gloo resolves the host's name to find an address, which fails in some containers.
            GLOO_SOCKET_IFNAME="lo",
            LATTICE_DEMO_NODE=str(node),
            LATTICE_RDZV_NODE_NAME=name(node),
            OMP_NUM_THREADS="1",
            PYTHONUNBUFFERED="1",
        )
        command = [
            *torchrun(),
            *("--nnodes", NNODES, "--nproc-per-node", "1"),
            *("--rdzv-backend", "lattice", "--rdzv-endpoint", self.endpoint, "--rdzv-id", RUN_ID),
            *("--rdzv-conf", RENDEZVOUS_CONF, "--max-restarts", "3", "--local-addr", "127.0.0.1"),
            *("train.py", str(self.folder)),
        ]
        if not self.agents:
            print(coloured(f"  $ {' '.join(['torchrun', *command[len(torchrun()) : -1]])}", "grey"))
        with (self.folder / f"{name(node)}.log").open("ab") as log:
            self.agents[node] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, node: int) -> None:
        """Simulates the loss of a machine: kills the agent, and the worker, which is in its own session."""
        self.killed.add(node)
        self._end(node)

    def wait_for_world(self, what: str, wanted: Callable[[list[int]], bool]) -> list[int]:
        """Waits until the workers are in a new world that satisfies `wanted`, and returns its nodes by rank."""
        seen = len(self.worlds)
        self._wait(what, lambda: len(self.worlds) > seen and wanted(self.worlds[-1]))
        return self.worlds[-1]

    def wait_for_steps(self, steps: int) -> None:
        """Waits until the training has made that many more steps."""
        target = self.step + steps
        self._wait(f"step {target} of the training", lambda: self.step >= target)

    def wait_for_end(self) -> dict[int, int]:
        """Waits for all agents and returns their exit statuses."""
        self._wait("the end of all agents", lambda: all(agent.poll() is not None for agent in self.agents.values()))
        return {node: agent.wait() for node, agent in sorted(self.agents.items())}

    def stop(self) -> None:
        """Kills all remaining processes."""
        for node in self.agents:
            self._end(node)
        for agent in self.agents.values():
            agent.wait()

    def _end(self, node: int) -> None:
        """Kills an agent, which would restart its worker, and then the worker. PIDs can be reused, so it skips an agent
        that has already ended and a process that does not belong to this job."""
        if self.agents[node].poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.agents[node].pid, signal.SIGKILL)
        worker = self.workers.get(node)
        if worker is not None and str(self.folder) in command_line(worker):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def _wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STEP_DEADLINE_SECONDS
        while True:
            self._read_events()
            if happened():
                return
            for node, agent in self.agents.items():
                if node not in self.killed and agent.poll() not in (None, 0):
                    raise ScenarioError(
                        f"{name(node)} ended with status {agent.returncode} while the demo waited for {what}"
                    )
            if time.monotonic() > deadline:
                raise ScenarioError(f"timeout after {STEP_DEADLINE_SECONDS:.0f} s while waiting for {what}")
            time.sleep(POLL_SECONDS)

    def _read_events(self) -> None:
        path = self.folder / "events.jsonl"
        if not path.exists():
            return
        with path.open("rb") as events:
            events.seek(self._read)
            for line in events:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(json.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "worker":
                self.workers[event["node"]] = event["pid"]
            case "world":
                self.worlds.append(event["by_rank"])
                ranks = ", ".join(f"{name(node)} has rank {rank}" for rank, node in enumerate(event["by_rank"]))
                say(
                    self,
                    f"  a world of {len(event['by_rank'])} nodes: {ranks}; training continues from step {event['step']}",
                )
            case "step":
                self.step = event["step"]
                self.losses.append(event["loss"])


@contextmanager
def training(folder: Path, endpoint: str) -> Iterator[Job]:
    """Provides a job without agents, and kills its agents at the end."""
    shutil.copy(Path(__file__).with_name("demo_job.py"), folder / "train.py")
    job = Job(folder, endpoint)
    try:
        yield job
    finally:
        job.stop()


def name(node: int) -> str:
    """Returns the name of a node."""
    return f"node-{node}"


def command_line(pid: int) -> str:
    """Returns the command line of a process, or an empty text if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def torchrun() -> list[str]:
    """Returns the command of this Python's torchrun."""
    script = Path(sys.executable).with_name("torchrun")
    return [str(script)] if script.exists() else [sys.executable, "-m", "torch.distributed.run"]


def say(job: Job, text: str) -> None:
    """Prints one line with the time since the start."""
    print(f"{coloured(f'{job.seconds:5.1f} s', 'grey')}  {text}", flush=True)
