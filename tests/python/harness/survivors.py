"""Jobs of `examples/train/survive.py`: real processes, each a node of the run, and what they print."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import lattice_rdzv
from harness import job_process
from harness.wait import wait_for
from lattice_rdzv.types import RunStatus

SCRIPT = Path(__file__).parents[3] / "examples/train/survive.py"
POINTS = Path(__file__).with_name("survive_points.py")
SAMPLES = 64
# Importing torch in every process, on two busy cores.
START_SECONDS = 150.0
TRAIN_SECONDS = 60.0
CONF = {
    "lease_ttl": "10",
    "last_call_timeout": "60",
    "grow_delay": "0.1",
    "local_addr": "127.0.0.1",
}

_STEP = re.compile(r"^step=(\d+) world=(\d+) rank=(\d+)/(\d+) pid=(\d+) loss=(\S+) samples=(\d+)$", re.MULTILINE)
_HASH = re.compile(r"^world=(\d+) rank=(\d+)/(\d+) pid=(\d+) step=(\d+) samples=(\d+) hash=(\w+) ", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One completed step of one process."""

    step: int
    world: int
    rank: int
    size: int
    pid: int
    samples: int


@dataclass(frozen=True)
class Equal:
    """What one process reports when the states of a world are equal."""

    world: int
    rank: int
    size: int
    pid: int
    step: int
    samples: int
    digest: str


class Counts(NamedTuple):
    """What a process uses."""

    threads: int
    descriptors: int
    resident_mebibytes: int


@dataclass
class Trainer:
    """One training process."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def steps(self) -> list[Step]:
        return [
            Step(int(step), int(world), int(rank), int(size), int(pid), int(samples))
            for step, world, rank, size, pid, _, samples in _STEP.findall(self.log)
        ]

    def equals(self) -> list[Equal]:
        return [
            Equal(int(world), int(rank), int(size), int(pid), int(step), int(samples), digest)
            for world, rank, size, pid, step, samples, digest in _HASH.findall(self.log)
        ]

    def kill(self) -> None:
        """SIGKILL. Returns when the process has ended."""
        self.process.kill()
        self.process.wait()

    def counts(self) -> Counts:
        """What it uses now."""
        here = Path(f"/proc/{self.pid}")
        resident = int((here / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        return Counts(len(list((here / "task").iterdir())), len(list((here / "fd").iterdir())), resident)

    def wait(self, timeout_seconds: float = TRAIN_SECONDS) -> int:
        """Waits for its end and returns its status."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_seconds:g} s\n{self.log[-4000:]}") from None


class Survivors:
    """One job and its processes."""

    def __init__(self, folder: Path, endpoint: str, run_id: str, *, nnodes: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.run_id = run_id
        self.nnodes = nnodes
        self.trainers: list[Trainer] = []

    def start(
        self,
        name: str,
        *,
        script: Path = SCRIPT,
        steps: int = 10_000,
        step_seconds: float = 0.02,
        conf: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Trainer:
        """Starts a process that is called `name`."""
        settings = {**CONF, "node_name": name, **(conf or {})}
        command = [
            sys.executable, str(script),
            "--run-id", self.run_id, "--nnodes", self.nnodes, "--endpoint", self.endpoint,
            "--rdzv-conf", ",".join(f"{key}={value}" for key, value in settings.items()),
            "--steps", str(steps), "--step-seconds", str(step_seconds),
        ]  # fmt: skip
        log_file = self.folder / f"{name}-{len(self.trainers)}.log"
        variables = {
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "LATTICE_RDZV_LOG": "info",
        }
        process = job_process.start(command, log_file, {**variables, **(environment or {})})
        trainer = Trainer(name, process, log_file)
        self.trainers.append(trainer)
        return trainer

    def wait_trains(self, *trainers: Trainer, timeout_seconds: float = TRAIN_SECONDS) -> int:
        """Waits until exactly these processes train together, and returns the round of their world."""

        def trains() -> int | None:
            for trainer in trainers:
                assert trainer.process.poll() is None, f"{trainer.name} has ended, and should train\n{self.describe()}"
            newest = [steps[-1] for trainer in trainers if (steps := trainer.steps())]
            together = len(newest) == len(trainers) and {one.size for one in newest} == {len(trainers)}
            worlds = {one.world for one in newest}
            return worlds.pop() if together and len(worlds) == 1 else None

        names = ", ".join(trainer.name for trainer in trainers)
        return wait_for(f"{names} train together", trains, timeout_seconds=timeout_seconds, detail=self.describe)

    def wait_steps(self, trainer: Trainer, more: int, *, timeout_seconds: float = TRAIN_SECONDS) -> int:
        """Waits until a process has completed that many more steps, and returns the number of its last one."""
        steps = trainer.steps()
        target = (steps[-1].step if steps else 0) + more

        def reached() -> int | None:
            now = trainer.steps()
            return now[-1].step if now and now[-1].step >= target else None

        return wait_for(
            f"{trainer.name} completes step {target}", reached, timeout_seconds=timeout_seconds, detail=self.describe
        )

    def status(self) -> RunStatus:
        """Reads the run."""
        return lattice_rdzv.status(self.run_id, endpoint=self.endpoint)

    def check(self) -> None:
        """Checks what holds for every job: equal states after each world, and an exact count of samples."""
        by_world: dict[int, set[tuple[int, int, str]]] = {}
        for trainer in self.trainers:
            for equal in trainer.equals():
                by_world.setdefault(equal.world, set()).add((equal.step, equal.samples, equal.digest))
        assert by_world, self.describe()
        different = {world: found for world, found in by_world.items() if len(found) != 1}
        assert not different, f"states differ: {different}\n{self.describe()}"
        # Each step was completed once, in a world of one size, and all agree on the samples after it.
        samples: dict[int, set[int]] = {}
        sizes: dict[int, set[int]] = {}
        for trainer in self.trainers:
            steps = trainer.steps()
            # What a killed process completed last may have been lost with it.
            for step in steps[:-1] if trainer.process.poll() == -signal.SIGKILL else steps:
                samples.setdefault(step.step, set()).add(step.samples)
                sizes.setdefault(step.step, set()).add(step.size)
        assert sorted(samples) == list(range(1, len(samples) + 1)), self.describe()
        total = 0
        for number in sorted(samples):
            assert len(samples[number]) == 1, f"step {number}: {samples[number]}\n{self.describe()}"
            assert len(sizes[number]) == 1, (
                f"step {number} was completed in two worlds: {sizes[number]}\n{self.describe()}"
            )
            total += SAMPLES * next(iter(sizes[number]))
            assert samples[number] == {total}, f"step {number}: {samples[number]}, not {total}\n{self.describe()}"

    def describe(self) -> str:
        """What there is to see when a test fails."""
        return "\n".join(
            f"--- {one.name}, pid {one.pid}, status {one.process.poll()}\n{one.log[-2500:]}" for one in self.trainers
        )

    def end(self) -> None:
        """Leaves no process behind."""
        for trainer in self.trainers:
            with suppress(ProcessLookupError):
                os.killpg(trainer.pid, signal.SIGKILL)
            trainer.process.wait()


MakeSurvivors = Callable[..., Survivors]
