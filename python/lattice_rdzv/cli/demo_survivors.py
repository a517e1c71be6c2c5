"""The demo's second part: three processes, one of which is killed while the others continue in the same processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .demo_agents import POLL_SECONDS, STEP_DEADLINE_SECONDS, ScenarioError

T = TypeVar("T")

PROCESSES = 3
RUN_ID = "demo-survivors"
STEPS_BEFORE = 20


class Survivors:
    """The processes, and the steps that they reported."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")}
        environment.update(
            GLOO_SOCKET_IFNAME="lo",
            LATTICE_NNODES=f"1:{PROCESSES}",
            LATTICE_RDZV_ENDPOINTS=endpoint,
            LATTICE_RDZV_ID=RUN_ID,
            LOCAL_WORLD_SIZE=str(PROCESSES),
            OMP_NUM_THREADS="1",
            PYTHONUNBUFFERED="1",
        )
        program = Path(__file__).with_name("demo_survivor.py")
        for number in range(PROCESSES):
            with (folder / f"node-survivor-{number}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, str(program), str(folder)],
                        env={**environment, "LOCAL_RANK": str(number)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def kill_one(self) -> float:
        """Waits until all train, kills one, and returns how long the training of the others stopped, in seconds."""
        self._wait("the training of all processes", lambda steps: self._completed(steps, STEPS_BEFORE))
        victim = self._processes[1]
        pids = {process.pid for process in self._processes} - {victim.pid}
        at = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()

        def next_steps(steps: list[dict[str, Any]]) -> float | None:
            first: dict[int, float] = {}
            for step in steps:
                if step["size"] == PROCESSES - 1:
                    first.setdefault(step["pid"], step["at"])
            return max(first.values()) if first.keys() == pids else None

        return self._wait("the next step of the same processes", next_steps) - at

    def finish(self) -> None:
        """Makes the processes end, and waits for them."""
        (self._folder / "enough").touch()
        statuses = [process.wait(STEP_DEADLINE_SECONDS) for process in self._processes]
        if statuses.count(0) != PROCESSES - 1:
            raise ScenarioError(f"a surviving process did not exit with status 0: {statuses}")

    def end(self) -> None:
        """Kills the remaining processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _completed(self, steps: list[dict[str, Any]], least: int) -> bool | None:
        done = {step["pid"] for step in steps if step["step"] >= least and step["size"] == PROCESSES}
        return True if len(done) == PROCESSES else None

    def _wait(self, what: str, found: Callable[[list[dict[str, Any]]], T | None]) -> T:
        deadline = time.monotonic() + STEP_DEADLINE_SECONDS
        path = self._folder / "survivors.jsonl"
        while time.monotonic() < deadline:
            lines = path.read_text().splitlines() if path.exists() else []
            result = found([json.loads(line) for line in lines if line.endswith("}")])
            if result is not None:
                return result
            time.sleep(POLL_SECONDS)
        raise ScenarioError(f"timeout after {STEP_DEADLINE_SECONDS:.0f} s while waiting for {what}")


@contextmanager
def surviving(folder: Path, endpoint: str) -> Iterator[Survivors]:
    """Starts the processes, and kills the remaining ones at the end."""
    job = Survivors(folder, endpoint)
    try:
        yield job
    finally:
        job.end()
