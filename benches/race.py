"""How long N nodes need to meet through torch's public handler: `c10d` against `lattice` on etcd and on its embedded store,
in one run on one machine.

The same for all: nodes are threads of as many processes as the machine has cores (or `--per-process` of them of one),
forked from one that has torch loaded, so that what is raced is the rendezvous and neither N imports nor N processes that
one machine would never have; all wait at a gate, and the clock runs from its opening to the last node. Three rows:

- `next_rendezvous`: every node knows its rank.
- `agent ready`: and has been through the exchange by which torch's agent gives out its workers' ranks, torch's own code.
- `processors`: the processors' time that all nodes and the service have used until then, which says more than a clock where
  others use the machine too.

Where torchft is installed its lighthouse is raced as well; what that has and has not in it is told in `torchft_manager.py`.

What differs is each one's own: c10d's store is in the first node's process and its handler connects when it is made,
before the gate; lattice's connects after it, to an etcd or to `lattice-rdzv serve`, started anew for every race.
"""

import argparse
import gc
import importlib.metadata
import json
import math
import os
import platform
import resource
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
import torchft_manager
from etcd_process import running_etcd
from serving import serving
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent, WorkerSpec
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from lattice_rdzv.cli.local_etcd import free_ports

# In the order of the columns, with what stands above them; ratios are to the first.
CONTENDERS = {
    "c10d": "c10d",
    "etcd": "lattice, etcd",
    "embedded": "lattice, embedded",
    "torchft": "torchft, lighthouse",
}
START_SECONDS = 60.0


class Times(NamedTuple):
    """From the gate to a node, in seconds."""

    next_rendezvous: float
    agent_ready: float


class Race(NamedTuple):
    """From the gate to the last node, in seconds, and what it took; infinite if some node did not get there in time."""

    next_rendezvous: float
    agent_ready: float
    processors: float


class RacerError(Exception):
    """A node did not get there."""


class Gate(NamedTuple):
    """A pipe that nobody writes to: whoever reads it waits until its last writer closes it."""

    read_end: int
    write_end: int

    @classmethod
    def new(cls) -> "Gate":
        """A closed one."""
        return cls(*os.pipe())

    def wait(self) -> None:
        """In a child."""
        os.read(self.read_end, 1)

    def open(self) -> None:
        """Lets all pass."""
        os.dup2(self.read_end, self.write_end)

    def close(self) -> None:
        """Gives the descriptors back."""
        os.close(self.read_end)
        os.close(self.write_end)


class Racer(NamedTuple):
    """A node's process, and the pipe on which it reports, a line of JSON each time."""

    pid: int
    reports: int

    def read(self, seconds: float) -> dict[str, float]:
        """Its next report."""
        line = b""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.reports, select.POLLIN)
        while not line.endswith(b"\n"):
            # Not select(), whose descriptors end at 1024.
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise RacerError("not all nodes got there in time")
            part = os.read(self.reports, 4096)
            if not part:
                raise RacerError("a node's process ended")
            line += part
        report: dict[str, Any] = json.loads(line)
        if "error" in report:
            raise RacerError(report["error"])
        return report

    def end(self) -> None:
        """Kills it, so that no farewell of N nodes disturbs the next race."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reports)


NEVER = Race(float("inf"), float("inf"), float("inf"))


def main() -> None:
    """Races and prints."""
    parser = argparse.ArgumentParser(
        description="Race N nodes on c10d, on lattice with etcd and with its embedded store, and at torchft's lighthouse."
    )
    parser.add_argument("--etcd", type=Path, required=True, help="the etcd binary")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64, 128], help="how many nodes (16 64 128)")
    parser.add_argument("--repeat", type=int, default=3, help="races of each kind; the median is printed (3)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTENDERS,
        help="leave the others out (all of them; torchft where it is installed)",
    )
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="the longest race (300)")
    parser.add_argument(
        "--per-process", type=int, metavar="NODES", help="nodes that share a process (as many as make one a core)"
    )
    arguments = parser.parse_args()
    contenders: list[str] = arguments.only or list(CONTENDERS)
    if "torchft" in contenders and not torchft_manager.is_installed():
        if arguments.only:
            parser.error("torchft is not installed: `pip install torchft`, or leave it out of `--only`")
        contenders.remove("torchft")
        print("torchft is not installed, so that its lighthouse is left out")

    raise_file_limit()
    # What N nodes would tell one terminal is not a part of the race.
    os.environ.setdefault("LATTICE_RDZV_LOG", "warning")
    os.environ.setdefault("RUST_LOG", "warn")  # torchft's
    with running_etcd(arguments.etcd) as etcd:
        print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
            f"lattice-rdzv {importlib.metadata.version('lattice-rdzv')}, etcd {etcd.version()}; "
            f"medians of {arguments.repeat}, in seconds"
        )
    columns = [CONTENDERS[contender] for contender in contenders]
    print(f"{'nodes':>6}  {'':<16}" + "".join(f"{column:>26}" for column in columns) + "   all", flush=True)
    for nodes in arguments.nodes:
        results: dict[str, list[Race]] = {contender: [] for contender in contenders}
        for _ in range(arguments.repeat):
            for contender in contenders:
                # What was too slow once is not waited for again.
                if NEVER not in results[contender]:
                    per_process = arguments.per_process or math.ceil(nodes / (os.cpu_count() or 1))
                    results[contender].append(race(contender, nodes, arguments.etcd, arguments.limit, per_process))
        for row in Race._fields:
            told = {contender: [getattr(times, row) for times in results[contender]] for contender in results}
            name = row.replace("_", " " if row == "agent_ready" else "_")
            every = "; ".join(" ".join(f"{seconds:.3f}" for seconds in times) for times in told.values())
            print(f"{nodes:>6}  {name:<16}" + "".join(cells(told)) + f"   {every}", flush=True)


def cells(told: dict[str, list[float]]) -> list[str]:
    """Each contender's median, and how many times faster than the first it is."""
    medians = [statistics.median(times) for times in told.values()]
    ratios = ["", *(f"  {medians[0] / median:.1f}x" for median in medians[1:])]
    return [f"{f'{median:.3f}{ratio}':>26}" for median, ratio in zip(medians, ratios, strict=True)]


@contextmanager
def service(contender: str, nodes: int, etcd_binary: Path) -> Iterator[str]:
    """What the contender's nodes meet on, with nothing in it yet; its endpoint."""
    if contender == "c10d":
        yield f"127.0.0.1:{free_ports(1)[0]}"
    elif contender == "etcd":
        with running_etcd(etcd_binary) as etcd:
            yield etcd.endpoint
    elif contender == "torchft":
        with torchft_manager.lighthouse(nodes) as address:
            yield address
    else:
        # A process of its own, as an etcd is, so that no node carries the store's work.
        command = [sys.executable, "-m", "lattice_rdzv.cli", "serve", "--listen", "127.0.0.1:0"]
        with serving(command) as endpoint:
            yield endpoint


def race(contender: str, nodes: int, etcd_binary: Path, limit_seconds: float, per_process: int = 1) -> Race:
    """One race, with a service that nobody used before."""
    with service(contender, nodes, etcd_binary) as endpoint:
        gate = Gate.new()
        # Forked children would otherwise copy every page that the garbage collector touches.
        gc.collect()
        gc.freeze()
        racers: list[Racer] = []
        try:
            # c10d's first node hosts the store, so the others may only start once it is there.
            for first in range(0, nodes, per_process):
                group = range(first, min(first + per_process, nodes))
                racers.append(fork_racer(contender, endpoint, group, nodes, limit_seconds, gate))
                if first == 0:
                    racers[0].read(START_SECONDS)
            for racer in racers[1:]:
                racer.read(START_SECONDS)
            before = processor_seconds()
            opened = time.monotonic()
            gate.open()
            reports = [racer.read(opened + limit_seconds - time.monotonic()) for racer in racers]
            processors = processor_seconds() - before
        except RacerError as error:
            print(f"{nodes:>6}  {contender}: {error}", file=sys.stderr)
            return NEVER
        finally:
            gate.close()
            for racer in racers:
                racer.end()
    # CLOCK_MONOTONIC is one clock for all processes of a machine.
    ranked, ready = (max(report[row] for report in reports) - opened for row in Times._fields)
    return Race(ranked, ready, processors)


def processor_seconds() -> float:
    """What the processes of a race, this one's children, have used of the processors so far."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    # A process's clock by its pid, as clock_getcpuclockid(3) makes it.
    return sum(time.clock_gettime(~int(child) << 3 | 2) for child in children)


def fork_racer(contender: str, endpoint: str, group: range, nodes: int, limit_seconds: float, gate: Gate) -> Racer:
    """A process with these nodes in it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return Racer(pid, read_end)
    status = 1
    try:
        os.close(read_end)
        os.close(gate.write_end)
        run_nodes(contender, endpoint, group, nodes, limit_seconds, gate, write_end)
        status = 0
    except BaseException as error:  # it is the parent that tells
        with suppress(OSError):
            os.write(
                write_end,
                (json.dumps({"error": f"a node of {group}: {type(error).__name__}: {error}"}) + "\n").encode(),
            )
    finally:
        os._exit(status)


def run_nodes(
    contender: str, endpoint: str, group: range, nodes: int, limit_seconds: float, gate: Gate, reports: int
) -> None:
    """What torch's agents do until their workers may start."""
    made = [make_node(contender, endpoint, node, nodes, limit_seconds) for node in group]

    def through_the_gate(node: Callable[[], Times]) -> Times:
        gate.wait()
        return node()

    # What it takes to start so many threads is no node's: they are there before the gate opens.
    with ThreadPoolExecutor(len(made)) as threads:
        running = [threads.submit(through_the_gate, node) for node in made]
        os.write(reports, b"{}\n")
        times = [node.result() for node in running]
        last = Times(*(max(each[row] for each in times) for row in range(len(Times._fields))))
        os.write(reports, (json.dumps(last._asdict()) + "\n").encode())
        # Until killed: others may still need what this process hosts.
        signal.pause()


def make_node(contender: str, endpoint: str, node: int, nodes: int, limit_seconds: float) -> Callable[[], Times]:
    """A node before the gate; what is returned takes it to where its agent could start workers."""
    if contender == "torchft":
        quorum = torchft_manager.make_manager(endpoint, node, nodes, limit_seconds)
        return partial(meet_in_quorum, quorum)
    return partial(meet, make_handler(contender, endpoint, node, nodes, limit_seconds))


def make_handler(contender: str, endpoint: str, node: int, nodes: int, limit_seconds: float) -> RendezvousHandler:
    """As torchrun makes it."""
    configuration = {"local_addr": "127.0.0.1", "join_timeout": str(int(limit_seconds) + 60)}
    backend = "c10d" if contender == "c10d" else "lattice"
    if backend == "c10d":
        configuration["is_host"] = str(node == 0).lower()
        configuration["read_timeout"] = str(int(limit_seconds))
    else:
        configuration["node_name"] = f"node-{node}"
    return get_rendezvous_handler(
        RendezvousParameters(backend, endpoint, f"race-{nodes}", nodes, nodes, **cast(dict[str, Any], configuration))
    )


def meet(handler: RendezvousHandler) -> Times:
    """When this node knew its rank, and when its agent could have started workers."""
    world = handler.next_rendezvous()
    ranked = time.monotonic()
    spec = WorkerSpec("race", 1, handler, entrypoint="none")
    SimpleElasticAgent._assign_worker_ranks(
        cast(SimpleElasticAgent, SimpleNamespace()), world.store, world.rank, world.world_size, spec
    )
    return Times(ranked, time.monotonic())


def meet_in_quorum(quorum: Callable[[], None]) -> Times:
    """The same for torchft's node, whose rank is all that there is to wait for."""
    quorum()
    ranked = time.monotonic()
    return Times(ranked, ranked)


def raise_file_limit() -> None:
    """One process may hold a socket of every node."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
