"""Measures how long the other processes of a job stop when one of four is killed: from SIGKILL to their next optimizer step.

    python benches/survive.py --kills 10 --restarts 3

All contenders train the same small model over gloo on this machine, one process for each node:

- `re-formed`: `lattice_rdzv.torch.elastic`. The survivors form the next group in the same processes.
- `told`: as `re-formed`, but the process gets SIGTERM and leaves after its step. The run announces that within milliseconds,
  so this is the time of re-forming alone, without that of detecting a loss.
- `restarted`: torchrun with `--rdzv-backend lattice`. The agents restart their workers.
- `c10d`: torchrun with c10d and the shortest keep-alive that it accepts. The node that hosts its store is not killed.
- `torchft`: its lighthouse and a manager in each process, if torchft is installed.

A node is killed with all of its processes, as by the loss of a machine. The clock stops when the last survivor has completed
a step in a world without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torchft_manager
from etcd_process import running_etcd
from serving import serving

from lattice_rdzv.cli.local_etcd import free_ports

CONTENDERS = ["re-formed", "told", "restarted", "c10d", "torchft"]
NODES = 4
WORKER = Path(__file__).with_name("survive_worker.py")
START_SECONDS = 180.0
SURVIVE_SECONDS = 120.0
POLL_SECONDS = 0.002
SETTLE_SECONDS = 0.5


class Job:
    """The processes of one contender."""

    def __init__(self, way: str, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self.way = way
        self.folder = folder
        self.command = command
        self.environment = environment
        self.out = folder / "steps.jsonl"
        self.out.touch()
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._read = 0
        self._steps: list[dict[str, Any]] = []

    def start(self, name: str) -> None:
        """Starts a node."""
        command = [*self.command, str(WORKER), self.way, str(self.out), name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.nodes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **{key: value for key, value in os.environ.items() if not key.startswith(("LATTICE_", "TORCHELASTIC_"))},
                    "GLOO_SOCKET_IFNAME": "lo",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONWARNINGS": "ignore",
                    **self.environment,
                },
            )  # fmt: skip

    def kill(self, name: str) -> float:
        """Kills a node with its worker, which is in a separate session under torchrun. Returns the time."""
        node = self.nodes.pop(name)
        pids = {step["pid"] for step in self.steps() if step["name"] == name} | {node.pid}
        at = time.monotonic()
        for pid in pids:
            if str(self.out) in _command_line(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        node.wait()
        return at

    def terminate(self, name: str) -> float:
        """Sends SIGTERM to a node. Returns the time."""
        node = self.nodes.pop(name)
        at = time.monotonic()
        node.terminate()
        node.wait()
        return at

    def steps(self) -> list[dict[str, Any]]:
        """Returns the steps that were reported so far."""
        with self.out.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._steps.append(json.loads(line))
        return self._steps

    def wait_trains(self, since: float, limit_seconds: float) -> float:
        """Waits until each node has completed a step in a world of exactly these nodes since then. Returns the time of the last
        of these steps."""
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            first: dict[str, float] = {}
            for step in self.steps():
                if step["at"] > since and step["size"] == len(self.nodes) and step["name"] in self.nodes:
                    first.setdefault(step["name"], step["at"])
            if len(first) == len(self.nodes):
                return max(first.values())
            time.sleep(POLL_SECONDS)
        logs = "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log"))
        raise TimeoutError(f"not {len(self.nodes)} nodes trained within {limit_seconds:g} s\n{logs}")

    def end(self) -> None:
        """Kills all nodes."""
        for name in list(self.nodes):
            self.kill(name)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def job_of(contender: str, etcd: str, lease_seconds: int) -> Iterator[Job]:
    """Starts four nodes of a contender, and waits until they train."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="survive-")))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--max-restarts", "100"]
        torchrun += ["--nnodes", f"1:{NODES}", "--monitor-interval", "0.05", "--local-addr", "127.0.0.1"]
        run_id = f"survive-{contender}-{time.monotonic_ns()}"
        environment: dict[str, str] = {}
        way = "restart"
        match contender:
            case "re-formed" | "told":
                way, command = "elastic", [sys.executable]
                environment = {
                    "LATTICE_RDZV_ENDPOINTS": etcd,
                    "LATTICE_RDZV_ID": run_id,
                    "LATTICE_NNODES": f"1:{NODES}",
                    "BENCH_LEASE_TTL": str(lease_seconds),
                }
            case "restarted":
                conf = f"lease_ttl={lease_seconds},settle_time=0.1,last_call_timeout=60,grow_delay=0.1"
                command = [*torchrun, "--rdzv-backend", "lattice", "--rdzv-endpoint", etcd, "--rdzv-id", run_id]
                command += ["--rdzv-conf", conf]
            case "c10d":
                [port] = free_ports(1)
                conf = "keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=5,join_timeout=120"
                command = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
                # With fewer than three, the agents that restart first begin without the others.
                command += ["--rdzv-id", run_id, "--rdzv-conf", conf, "--nnodes", f"{NODES - 1}:{NODES}"]
            case _:
                way, command = "torchft", [sys.executable]
                environment = {"TORCHFT_LIGHTHOUSE": stack.enter_context(torchft_manager.lighthouse(1))}
        job = Job(way, folder, command, environment)
        stack.callback(job.end)
        for number in range(NODES):
            job.start(f"n{number}")
            if contender == "c10d" and number == 0:
                # The first one hosts c10d's store.
                time.sleep(3)
        job.wait_trains(0.0, START_SECONDS)
        yield job


def measure(contender: str, etcd: str, kills: int, lease_seconds: int) -> list[float]:
    """Returns the seconds of each kill. A job that can grow again is killed several times."""
    if contender in ("re-formed", "told"):
        found = []
        with job_of(contender, etcd, lease_seconds) as job:
            for number in range(kills):
                time.sleep(SETTLE_SECONDS)
                end = job.kill if contender == "re-formed" else job.terminate
                at = end("n1" if number == 0 else f"n{number + NODES - 1}")
                found.append(job.wait_trains(at, SURVIVE_SECONDS) - at)
                if number + 1 < kills:
                    job.start(f"n{number + NODES}")
                    job.wait_trains(time.monotonic(), START_SECONDS)
        return found
    found = []
    for _ in range(kills):
        with job_of(contender, etcd, lease_seconds) as job:
            time.sleep(SETTLE_SECONDS)
            at = job.kill(f"n{NODES - 1}")
            found.append(job.wait_trains(at, SURVIVE_SECONDS) - at)
    return found


def main() -> int:
    """Measures all contenders and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="kills of the re-formed job (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=3, help="kills of each other contender (default: %(default)s)")
    parser.add_argument("--lease-ttl", type=int, default=2, help="lease in seconds (default: %(default)s)")
    parser.add_argument("--etcd", default="", metavar="PATH", help="etcd binary (default: the embedded server)")
    parser.add_argument("--only", nargs="+", default=CONTENDERS, metavar="CONTENDER")
    arguments = parser.parse_args()
    print(
        f"kill one of {NODES} processes; {os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, "
        f"torch {torch.__version__}, lease {arguments.lease_ttl} s, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    # torchft's lighthouse logs every request.
    os.environ.setdefault("RUST_LOG", "error")
    found: dict[str, list[float]] = {}
    failed = 0
    with ExitStack() as stack:
        if arguments.etcd:
            endpoint = stack.enter_context(running_etcd(Path(arguments.etcd))).endpoint
        else:
            command = [sys.executable, "-m", "lattice_rdzv.cli", "serve", "--listen", "127.0.0.1:0"]
            endpoint = stack.enter_context(serving(command))
        for contender in arguments.only:
            if contender == "torchft" and importlib.util.find_spec("torchft") is None:
                print("  torchft     not measured: it is not installed (pip install torchft)", flush=True)
                continue
            try:
                kills = arguments.kills if contender in ("re-formed", "told") else arguments.restarts
                found[contender] = measure(contender, endpoint, kills, arguments.lease_ttl)
            except TimeoutError as error:
                failed += contender in ("re-formed", "told", "restarted")
                print(f"  {contender:10}  failed: {error}", flush=True)
                continue
            print(row(contender, found[contender], found.get("re-formed")), flush=True)
    return 1 if failed else 0


def row(contender: str, seconds: list[float], ours: list[float] | None) -> str:
    """Returns one line of the table. Pure."""
    ordered = sorted(seconds)
    middle = statistics.median(ordered)
    ratio = f"  {middle / statistics.median(ours):5.1f} times ours" if ours and ours is not seconds else ""
    return (
        f"  {contender:10}  p50 {middle:6.3f} s  max {ordered[-1]:6.3f} s  min {ordered[0]:6.3f} s  "
        f"of {len(ordered)}{ratio}"
    )


if __name__ == "__main__":
    sys.exit(main())
