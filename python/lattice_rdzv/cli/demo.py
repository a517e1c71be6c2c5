"""`lattice-rdzv demo`: a real elastic job, with a loss in it, and a picture of its rounds at the end.

Everything is real: the embedded store on a free port, or an etcd that is named, one `torchrun` for each node, workers that
train over gloo (`demo_job.py`). The exit status tells whether the story went as told. Needs torch; changes nothing outside
a temporary folder.
"""

import argparse
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lattice_rdzv import _core
from lattice_rdzv._serve import serve

from .local_etcd import LocalEtcdError, serving_etcd
from .status import history_rows
from .terminal import coloured, table

RUN_ID = "demo"
# Short waits, so that a person sees the whole story; a real job keeps the defaults.
RENDEZVOUS_CONF = "lease_ttl=3,grow_delay=0.5,last_call_timeout=1,join_timeout=60"
STEP_DEADLINE_SECONDS = 60.0
STEPS_BETWEEN_EVENTS = 40
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 30


class StoryError(Exception):
    """What should have happened did not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which etcd, and whether to keep the logs."""
    parser.add_argument(
        "--etcd", default="", metavar="PATH", help="an etcd binary to meet on; default: the embedded store"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")


def run(arguments: argparse.Namespace) -> int:
    """0 if the story went as told."""
    if importlib.util.find_spec("torch") is None:
        print("the demo trains with torch: python -m pip install torch", file=sys.stderr)
        return 2
    etcd = shutil.which(arguments.etcd) if arguments.etcd else None
    if arguments.etcd and etcd is None:
        print(f"`--etcd` must name a program that can be run, and names: {arguments.etcd}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="lattice-demo-"))
    keep = arguments.keep
    try:
        tell_story(folder, Path(etcd).absolute() if etcd else None)
    except (StoryError, LocalEtcdError) as error:
        keep = True
        print(coloured(f"\nThe demo failed: {error}", "red"), file=sys.stderr)
        for log in sorted(folder.glob("node-*.log")):
            print(f"--- the end of {log}", file=sys.stderr)
            print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]), file=sys.stderr)
        return 1
    finally:
        if keep:
            print(f"logs: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


@contextmanager
def service(etcd: Path | None, folder: Path) -> Iterator[str]:
    """The service that the job meets on; its endpoint."""
    if etcd is not None:
        with serving_etcd(etcd, folder) as endpoint:
            yield endpoint
        return
    # What it has to say would stand between the lines of the story.
    logging.getLogger("lattice_rdzv").setLevel(logging.WARNING)
    with serve(port=0) as server:
        yield server.endpoint


def tell_story(folder: Path, etcd: Path | None) -> None:
    """Plays the story and shows its rounds. Raises `StoryError` where it goes another way."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(service(etcd, folder))
        job = stack.enter_context(training(folder, endpoint))

        say(job, "two nodes start; the job wants 2 to 4")
        job.start(1)
        job.start(2)
        first = job.wait_for_world("a world of node-1 and node-2", lambda world: set(world) == {1, 2})
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        say(job, "node-3 comes while the others train")
        job.start(3)
        grown = job.wait_for_world("a world with node-3 in it", lambda world: set(world) == {1, 2, 3})
        expect(
            [member for member in grown if member != 3] == first, f"ranks moved when node-3 came: {first} -> {grown}"
        )
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        victim = grown[0]
        say(job, f"{name(victim)}, which has rank 0, is killed with SIGKILL, agent and worker")
        job.kill(victim)
        shrunk = job.wait_for_world(f"a world without {name(victim)}", lambda world: set(world) == {1, 2, 3} - {victim})
        # Whoever had a rank that still exists keeps it; the last one fills the hole.
        expect(shrunk == [grown[2], grown[1]], f"ranks moved more than they had to: {grown} -> {shrunk}")
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        say(job, "that is enough: the training ends")
        (folder / "enough").touch()
        statuses = job.wait_for_end()
        expect(
            all(status == 0 for node, status in statuses.items() if node != victim),
            f"an agent ended with another status than 0: {statuses}",
        )
        seconds = job.seconds
        history = read_history(endpoint)
    worlds = [[name(member) for member in world] for world in job.worlds]
    expect(contains(worlds, [entry["names"] for entry in history]), f"the service tells of other rounds: {history}")
    print()
    print(picture(history, {name(node): status for node, status in statuses.items()}))
    print(f"\nThe job took {seconds:.0f} s; its loss went from {job.losses[0]:.3f} to {job.losses[-1]:.5f}.")


# --- the parts of the story ------------------------------------------------------------------------------------------


@dataclass
class Job:
    """The agents, and what their workers reported."""

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
        """Since the story began."""
        return time.monotonic() - self.started

    def start(self, node: int) -> None:
        """One more agent, in a process group of its own."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PET_", "LATTICE_", "TORCHELASTIC_"))
        }
        environment.update(
            # gloo looks for an address by the host's name, which some containers cannot resolve.
            GLOO_SOCKET_IFNAME="lo",
            LATTICE_DEMO_NODE=str(node),
            LATTICE_RDZV_NODE_NAME=name(node),
            OMP_NUM_THREADS="1",
            PYTHONUNBUFFERED="1",
        )
        command = [
            *torchrun(),
            *("--nnodes", "2:4", "--nproc-per-node", "1"),
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
        """As if its machine had gone: the agent and its worker, which is in a session of its own."""
        self.killed.add(node)
        self._end(node)

    def wait_for_world(self, what: str, wanted: Callable[[list[int]], bool]) -> list[int]:
        """The nodes by rank, once the workers are in a new world that is the wanted one."""
        seen = len(self.worlds)
        self._wait(what, lambda: len(self.worlds) > seen and wanted(self.worlds[-1]))
        return self.worlds[-1]

    def wait_for_steps(self, steps: int) -> None:
        """Until the training is that much further."""
        target = self.step + steps
        self._wait(f"step {target} of the training", lambda: self.step >= target)

    def wait_for_end(self) -> dict[int, int]:
        """The exit status of every agent."""
        self._wait("the end of all agents", lambda: all(agent.poll() is not None for agent in self.agents.values()))
        return {node: agent.wait() for node, agent in sorted(self.agents.items())}

    def stop(self) -> None:
        """Ends what is left."""
        for node in self.agents:
            self._end(node)
        for agent in self.agents.values():
            agent.wait()

    def _end(self, node: int) -> None:
        """Ends an agent, which would start its worker anew, and then that. Their numbers may be others' by now: an agent
        that was waited for is left alone, and so is a process that is not of this job."""
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
                    raise StoryError(
                        f"{name(node)} ended with status {agent.returncode} while this was awaited: {what}"
                    )
            if time.monotonic() > deadline:
                raise StoryError(f"not within {STEP_DEADLINE_SECONDS:.0f} s: {what}")
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
                say(self, f"  a world of {len(event['by_rank'])}: {ranks}; training goes on from step {event['step']}")
            case "step":
                self.step = event["step"]
                self.losses.append(event["loss"])


@contextmanager
def training(folder: Path, endpoint: str) -> Iterator[Job]:
    """A job without agents yet; none of them outlives it."""
    shutil.copy(Path(__file__).with_name("demo_job.py"), folder / "train.py")
    job = Job(folder, endpoint)
    try:
        yield job
    finally:
        job.stop()


def read_history(endpoint: str) -> list[dict[str, Any]]:
    """The rounds as the service tells them."""
    settings = _core.Settings({"run_id": RUN_ID, "endpoint": endpoint, "nnodes": "2:4", "node_name": "demo"}, {})
    history: list[dict[str, Any]] = json.loads(_core.status(settings)).get("history") or []
    return sorted(history, key=lambda entry: int(entry["round"]))


# --- pure ------------------------------------------------------------------------------------------------------------


def picture(history: list[dict[str, Any]], statuses: Mapping[str, int]) -> str:
    """Who had which rank in which round, then why each round was formed and how long it took."""
    header = ["", *(f"round {entry['round']}" for entry in history), "end"]
    rows = [header]
    for node, status in statuses.items():
        cells = []
        for entry in history:
            names = entry["names"]
            cells.append(f"rank {names.index(node)}" if node in names else "-")
        rows.append([node, *cells, "killed" if status < 0 else f"status {status}"])
    return f"{table(rows)}\n\n{table(history_rows(history))}"


def contains(parts: list[list[str]], whole: list[list[str]]) -> bool:
    """Whether `parts` occur in `whole`, in their order."""
    rest = iter(whole)
    return all(part in rest for part in parts)


def name(node: int) -> str:
    """What people call it."""
    return f"node-{node}"


def expect(condition: bool, otherwise: str) -> None:
    """Ends the story if it goes another way."""
    if not condition:
        raise StoryError(otherwise)


# --- the machine -----------------------------------------------------------------------------------------------------


def command_line(pid: int) -> str:
    """What a process was started with; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def say(job: Job, text: str) -> None:
    """One line of the story, with its time."""
    print(f"{coloured(f'{job.seconds:5.1f} s', 'grey')}  {text}", flush=True)


def torchrun() -> list[str]:
    """The torchrun of this Python."""
    script = Path(sys.executable).with_name("torchrun")
    return [str(script)] if script.exists() else [sys.executable, "-m", "torch.distributed.run"]
