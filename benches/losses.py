"""Measures how soon the other agents detect the death of an agent: from SIGKILL until the last of them has read the change, and
until it has its next world.

    python benches/losses.py --etcd ETCD [--torch-kills 200] [--light-kills 200]

Each agent is a separate process, in one run on one machine. Agents with torch have imported `torch.distributed.run`, as
torchrun has: the kernel frees the memory of a process before it closes its sockets, so their size matters. Light agents have
imported only this package. After each kill, new agents replace the killed ones. Their start is not measured.

- `told`: the last of the other agents has read the change (`num_nodes_waiting()` is 1).
- `told since end`: this time, from the moment at which the kernel closed the streams of the dead process.
- `formed`: the last of the other agents has its next world.

Each line has the 50th and the 99th percentile, and the maximum, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from etcd_process import running_etcd
from serving import serving

import lattice_rdzv

AGENTS = 16
PATIENCE_SECONDS = 60.0

AGENT = """
import json, os, sys, time
endpoint, run_id, name, index, kind, count = sys.argv[1:]
if kind == "torch":
    import torch.distributed.run
import lattice_rdzv
run = lattice_rdzv.join(run_id, endpoint=endpoint, nnodes=f"1:{count}", node_name=name, local_address="127.0.0.1",
                        grow_delay=0, node_index=int(index))
def say(what, **facts):
    os.write(1, (json.dumps(dict(what=what, at=time.monotonic(), **facts)) + "\\n").encode())
while True:
    world = run.next_world()
    say("world", size=world.size, rank=world.rank, node=run.node_id)
    change = run.wait_change()
    assert run.changing
    say("told", kind=change.kind, why=change.why)
"""


@dataclass
class Agent:
    """A process, and what it has reported."""

    process: subprocess.Popen[bytes]
    node: str = ""
    size: int = 0
    rank: int = -1
    pending: bytes = b""


@dataclass
class Times:
    """Milliseconds from the kills of one row."""

    told: list[float] = field(default_factory=list)
    since_end: list[float] = field(default_factory=list)
    formed: list[float] = field(default_factory=list)
    by_lease: int = 0


class Fleet:
    """The agents of one run."""

    def __init__(self, endpoint: str, run_id: str, kind: str, count: int) -> None:
        self._command = [endpoint, run_id]
        self._kind, self._count, self._started = kind, count, 0
        self._agents: dict[int, Agent] = {}
        self._selector = selectors.DefaultSelector()

    def fill(self) -> None:
        """Starts agents until the fleet is complete, and waits until all of them are in one world."""
        while len(self._agents) < self._count:
            number, self._started = self._started, self._started + 1
            name = f"agent-{number}"
            arguments = [*self._command, name, str(number), self._kind, str(self._count)]
            process = subprocess.Popen(
                [sys.executable, "-c", AGENT, *arguments],
                stdout=subprocess.PIPE,
                env={**os.environ, "LATTICE_RDZV_LOG": "off"},
            )
            assert process.stdout is not None
            self._agents[process.stdout.fileno()] = Agent(process)
            self._selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(agent.size != self._count for agent in self._agents.values()):
            for _ in self._facts(deadline):
                pass

    def resident_bytes(self) -> int:
        """Returns the memory of an agent."""
        pages = [
            int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1]) for agent in self._agents.values()
        ]
        return statistics.median_low(pages) * os.sysconf("SC_PAGE_SIZE")

    def ranks(self, row: str, number: int) -> list[int]:
        """Returns the ranks of the agents to kill in this round of a row."""
        if row == "the coordinator":
            endpoint, run_id = self._command
            coordinator = lattice_rdzv.status(run_id, endpoint=endpoint).run.coordinator
            return [agent.rank for agent in self._agents.values() if coordinator and agent.node == coordinator.id]
        count = 4 if row == "four" else 1
        return [(number + step * self._count // count) % self._count for step in range(count)]

    def kill(self, ranks: list[int], times: Times) -> None:
        """Kills the agents of these ranks at once, and measures."""
        victims = {number: agent for number, agent in self._agents.items() if agent.rank in ranks}
        rest = self._agents.keys() - victims.keys()
        began = time.monotonic()
        for agent in victims.values():
            agent.process.send_signal(signal.SIGKILL)
        told: dict[int, float] = {}
        formed: dict[int, float] = {}
        ended: dict[int, float] = {}
        deadline = began + PATIENCE_SECONDS
        while formed.keys() != rest or ended.keys() != victims.keys():
            for number, fact in self._facts(deadline):
                match fact["what"]:
                    case "end":
                        ended[number] = time.monotonic()
                    case "told":
                        told.setdefault(number, float(str(fact["at"])))
                        times.by_lease += "no renewal" in str(fact["why"])
                    case "world" if fact["size"] == len(rest):
                        formed[number] = float(str(fact["at"]))
        for agent in victims.values():
            agent.process.wait()
        times.told.append(1000 * (max(told.values()) - began))
        times.since_end.append(1000 * (max(told.values()) - max(ended.values())))
        times.formed.append(1000 * (max(formed.values()) - began))

    def _facts(self, deadline: float) -> Iterator[tuple[int, dict[str, object]]]:
        events = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not events:
            raise TimeoutError(f"nothing was reported within {PATIENCE_SECONDS:g} s")
        for key, _ in events:
            agent = self._agents[key.fd]
            read = os.read(key.fd, 1 << 16)
            if not read:
                yield key.fd, {"what": "end"}
                self._selector.unregister(key.fileobj)
                del self._agents[key.fd]
                continue
            *lines, agent.pending = (agent.pending + read).split(b"\n")
            for line in lines:
                fact = json.loads(line)
                if fact["what"] == "world":
                    agent.size, agent.rank, agent.node = fact["size"], fact["rank"], fact["node"]
                yield key.fd, fact

    def close(self) -> None:
        """Ends all agents."""
        for agent in self._agents.values():
            agent.process.kill()
            agent.process.wait()


@contextmanager
def fleet(endpoint: str, run_id: str, kind: str, count: int) -> Iterator[Fleet]:
    """Runs the agents of one run, and ends them afterwards."""
    agents = Fleet(endpoint, run_id, kind, count)
    try:
        agents.fill()
        yield agents
    finally:
        agents.close()


# The agents to kill: those of one rank after the other, the coordinator, and four at once that are not neighbors.
ROWS = {"torch": ["one"], "light": ["one", "the coordinator", "four"]}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--etcd", type=Path, required=True, help="the etcd binary")
    parser.add_argument("--torch-kills", type=int, default=20, help="kills of agents with torch (default: %(default)s)")
    parser.add_argument(
        "--light-kills", type=int, default=40, help="kills in each row of light agents (default: %(default)s)"
    )
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"machine: {os.cpu_count()} processors, {platform.machine()}, Linux {platform.release()}, load before {load:.1f}"
    )
    print(f"{AGENTS} agents, leases of 10 s; milliseconds from SIGKILL, p50 / p99 / max\n")
    print(
        f"{'service':9} {'agents':6} {'killed':16} {'told':>22} {'told since end':>22} {'formed':>22}  kills, by lease"
    )
    for service in ("embedded", "etcd"):
        with ExitStack() as stack:
            if service == "etcd":
                endpoint = stack.enter_context(running_etcd(arguments.etcd)).endpoint
            else:
                command = [sys.executable, "-m", "lattice_rdzv.cli", "serve", "--listen", "127.0.0.1:0"]
                endpoint = stack.enter_context(serving(command)).removeprefix("http://")
            for kind, rows in ROWS.items():
                kills = arguments.torch_kills if kind == "torch" else arguments.light_kills
                for row in rows:
                    with fleet(endpoint, f"{kind}-{row}".replace(" ", "-"), kind, AGENTS) as agents:
                        size = agents.resident_bytes() / 2**20
                        times = Times()
                        for number in range(kills):
                            # Waits until the lifelines are open.
                            time.sleep(0.5)
                            agents.kill(agents.ranks(row, number), times)
                            agents.fill()
                    columns = [percentiles(each) for each in (times.told, times.since_end, times.formed)]
                    print(
                        f"{service:9} {kind:6} {row:16} {columns[0]:>22} {columns[1]:>22} {columns[2]:>22}"
                        f"  {kills}, {times.by_lease} ({size:.0f} MB each)",
                        flush=True,
                    )


def percentiles(values: list[float]) -> str:
    """Returns the 50th and the 99th percentile, and the maximum."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.99)]
    return " / ".join(f"{value:.0f}" for value in [*at, ordered[-1]])


if __name__ == "__main__":
    main()
