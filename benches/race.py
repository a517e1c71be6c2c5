"""Measures how long N nodes need for a rendezvous through torch's public handler, in one run on one machine: `c10d` against
`lattice` with etcd and with the embedded server.

The nodes are threads of one process per core (or `--per-process` threads in each process). These processes are forked from
one that has loaded torch, so the race measures the rendezvous, and neither N imports of torch nor N processes, which one
machine would never run. All nodes wait at a gate. The time runs from the opening of the gate until the last node is done.
Three rows are printed:

- `next_rendezvous`: every node knows its rank.
- `agent ready`: every node has also completed the exchange in which torch's agent, by torch's own code, assigns the workers'
  ranks.
- `processors`: the processor time that all nodes and the service have used until then. It is more reliable than the elapsed
  time if other programs use the machine.

If torchft is installed, its lighthouse takes part as well. `torchft_manager.py` describes what that measurement includes.

The contenders differ in one point. c10d's store is in the first node's process, and its handler connects to the store when it
is created, before the gate opens. lattice's handler connects after that, to an etcd or to `lattice-rdzv serve`, which is
started anew for every race.
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

# The headers of the columns in their order. Ratios refer to the first column.
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
    """From the gate to the last node, in seconds, and the processor time; infinite if a node was not ready in time."""

    next_rendezvous: float
    agent_ready: float
    processors: float


class RacerError(Exception):
    """A node failed or was not ready in time."""


class Gate(NamedTuple):
    """A pipe without data: its readers wait until the last write end is closed."""

    read_end: int
    write_end: int

    @classmethod
    def new(cls) -> "Gate":
        """Returns a closed gate."""
        return cls(*os.pipe())

    def wait(self) -> None:
        """Waits in a child until the gate opens."""
        os.read(self.read_end, 1)

    def open(self) -> None:
        """Lets all waiting nodes continue."""
        os.dup2(self.read_end, self.write_end)

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self.read_end)
        os.close(self.write_end)


class Racer(NamedTuple):
    """A process with nodes, and the pipe on which it sends its reports, one line of JSON each."""

    pid: int
    reports: int

    def read(self, seconds: float) -> dict[str, float]:
        """Returns the next report."""
        line = b""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.reports, select.POLLIN)
        while not line.endswith(b"\n"):
            # Not select(), which supports only descriptors below 1024.
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise RacerError("not all nodes were ready in time")
            part = os.read(self.reports, 4096)
            if not part:
                raise RacerError("a node's process ended")
            line += part
        report: dict[str, Any] = json.loads(line)
        if "error" in report:
            raise RacerError(report["error"])
        return report

    def end(self) -> None:
        """Kills the process, so that N leaving nodes do not disturb the next race."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reports)


NEVER = Race(float("inf"), float("inf"), float("inf"))


def main() -> None:
    """Runs the races and prints the results."""
    parser = argparse.ArgumentParser(
        description="Race N nodes on c10d, on lattice with etcd and with the embedded server, and at torchft's lighthouse."
    )
    parser.add_argument("--etcd", type=Path, required=True, help="the etcd binary")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64, 128], help="numbers of nodes (16 64 128)")
    parser.add_argument("--repeat", type=int, default=3, help="races of each kind; the median is printed (3)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTENDERS,
        help="race only these contenders (default: all; torchft only if it is installed)",
    )
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="time limit of a race (300)")
    parser.add_argument(
        "--per-process", type=int, metavar="NODES", help="nodes in each process (default: one process per core)"
    )
    arguments = parser.parse_args()
    contenders: list[str] = arguments.only or list(CONTENDERS)
    if "torchft" in contenders and not torchft_manager.is_installed():
        if arguments.only:
            parser.error("torchft is not installed: `pip install torchft`, or leave it out of `--only`")
        contenders.remove("torchft")
        print("torchft is not installed, so its lighthouse is left out")

    raise_file_limit()
    # The log output of N nodes to one terminal is not a part of the race.
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
                # A contender that exceeded the limit once is not raced again.
                if NEVER not in results[contender]:
                    per_process = arguments.per_process or math.ceil(nodes / (os.cpu_count() or 1))
                    results[contender].append(race(contender, nodes, arguments.etcd, arguments.limit, per_process))
        for row in Race._fields:
            measured = {contender: [getattr(times, row) for times in results[contender]] for contender in results}
            name = row.replace("_", " " if row == "agent_ready" else "_")
            every = "; ".join(" ".join(f"{seconds:.3f}" for seconds in times) for times in measured.values())
            print(f"{nodes:>6}  {name:<16}" + "".join(cells(measured)) + f"   {every}", flush=True)


def cells(measured: dict[str, list[float]]) -> list[str]:
    """Returns each contender's median, and by which factor it is faster than the first contender."""
    medians = [statistics.median(times) for times in measured.values()]
    ratios = ["", *(f"  {medians[0] / median:.1f}x" for median in medians[1:])]
    return [f"{f'{median:.3f}{ratio}':>26}" for median, ratio in zip(medians, ratios, strict=True)]


@contextmanager
def service(contender: str, nodes: int, etcd_binary: Path) -> Iterator[str]:
    """Runs a new, empty service for the contender's nodes, and yields its endpoint."""
    if contender == "c10d":
        yield f"127.0.0.1:{free_ports(1)[0]}"
    elif contender == "etcd":
        with running_etcd(etcd_binary) as etcd:
            yield etcd.endpoint
    elif contender == "torchft":
        with torchft_manager.lighthouse(nodes) as address:
            yield address
    else:
        # A separate process, as with etcd, so that no node has the load of the server.
        command = [sys.executable, "-m", "lattice_rdzv.cli", "serve", "--listen", "127.0.0.1:0"]
        with serving(command) as endpoint:
            yield endpoint


def race(contender: str, nodes: int, etcd_binary: Path, limit_seconds: float, per_process: int = 1) -> Race:
    """Runs one race with a new service."""
    with service(contender, nodes, etcd_binary) as endpoint:
        gate = Gate.new()
        # Forked children would otherwise copy every page that the garbage collector touches.
        gc.collect()
        gc.freeze()
        racers: list[Racer] = []
        try:
            # c10d's first node hosts the store, so the others may start only after it has reported.
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
    # All processes of a machine share the clock CLOCK_MONOTONIC.
    ranked, ready = (max(report[row] for report in reports) - opened for row in Times._fields)
    return Race(ranked, ready, processors)


def processor_seconds() -> float:
    """Returns the processor time that the processes of a race, which are the children of this one, have used so far."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    # The clock of a process, computed from its pid as clock_getcpuclockid(3) does.
    return sum(time.clock_gettime(~int(child) << 3 | 2) for child in children)


def fork_racer(contender: str, endpoint: str, group: range, nodes: int, limit_seconds: float, gate: Gate) -> Racer:
    """Forks a process that runs these nodes."""
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
    except BaseException as error:  # the parent reports it
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
    """Does what torch's agents do until their workers may start."""
    made = [make_node(contender, endpoint, node, nodes, limit_seconds) for node in group]

    def through_the_gate(node: Callable[[], Times]) -> Times:
        gate.wait()
        return node()

    # The start of the threads is not measured: all of them run before the gate opens.
    with ThreadPoolExecutor(len(made)) as threads:
        running = [threads.submit(through_the_gate, node) for node in made]
        os.write(reports, b"{}\n")
        times = [node.result() for node in running]
        last = Times(*(max(each[row] for each in times) for row in range(len(Times._fields))))
        os.write(reports, (json.dumps(last._asdict()) + "\n").encode())
        # Waits until it is killed, because other nodes may still need the store that this process hosts.
        signal.pause()


def make_node(contender: str, endpoint: str, node: int, nodes: int, limit_seconds: float) -> Callable[[], Times]:
    """Prepares a node. The returned function runs it until its agent could start workers."""
    if contender == "torchft":
        quorum = torchft_manager.make_manager(endpoint, node, nodes, limit_seconds)
        return partial(join_quorum, quorum)
    return partial(rendezvous, make_handler(contender, endpoint, node, nodes, limit_seconds))


def make_handler(contender: str, endpoint: str, node: int, nodes: int, limit_seconds: float) -> RendezvousHandler:
    """Creates the handler as torchrun does."""
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


def rendezvous(handler: RendezvousHandler) -> Times:
    """Returns when this node knew its rank, and when its agent could have started workers."""
    world = handler.next_rendezvous()
    ranked = time.monotonic()
    spec = WorkerSpec("race", 1, handler, entrypoint="none")
    SimpleElasticAgent._assign_worker_ranks(
        cast(SimpleElasticAgent, SimpleNamespace()), world.store, world.rank, world.world_size, spec
    )
    return Times(ranked, time.monotonic())


def join_quorum(quorum: Callable[[], None]) -> Times:
    """Returns both times for a node of torchft, which can start as soon as it knows its rank."""
    quorum()
    ranked = time.monotonic()
    return Times(ranked, ranked)


def raise_file_limit() -> None:
    """Raises the limit of open files, because one process may have a socket for each node."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
