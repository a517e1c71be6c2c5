"""`lattice-rdzv run`: the training processes of one machine, of which each may fail independently."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.survivors import SCRIPT, START_SECONDS
from harness.wait import wait_for

from lattice_rdzv.cli import run

pytestmark = pytest.mark.timeout(240)

CONF = "lease_ttl=10,last_call_timeout=60,grow_delay=0.1,settle_time=0.2,local_addr=127.0.0.1"


class Launched:
    """One launcher, and its output."""

    def __init__(self, folder: Path, *arguments: str, program: list[str]) -> None:
        self.log_file = folder / "launcher.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
        environment.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", RANK="7")
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lattice_rdzv.cli", "run", *arguments, "--", *program],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self, timeout_seconds: float = 60.0) -> int:
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.log[-4000:]) from None

    def pids(self, size: int, *, since: int = 0) -> dict[int, int]:
        """Returns the processes of the last world of this size after a position of the log, by their local ranks."""
        log = self.log[since:]
        lines = re.findall(r"^\[(\d+)\] step=\d+ world=\d+ rank=\d+/(\d+) pid=(\d+)", log, re.MULTILINE)
        return {int(local): int(pid) for local, of, pid in lines[-2 * size :] if int(of) == size}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[list[Launched]]:
    started: list[Launched] = []
    yield started
    for one in started:
        one.end()


def test_launcher_starts_a_dead_process_again_while_the_others_continue(
    launched: list[Launched], tmp_path: Path
) -> None:
    train = [sys.executable, str(SCRIPT), "--rdzv-conf", CONF, "--steps", "100000", "--step-seconds", "0.05"]
    job = Launched(tmp_path, "--nproc-per-node", "3", program=train)
    launched.append(job)

    def trains(size: int, *, since: int = 0) -> dict[int, int]:
        return wait_for(
            f"{size} train",
            lambda: pids if len(pids := job.pids(size, since=since)) == size else None,
            timeout_seconds=START_SECONDS,
            detail=lambda: job.log[-4000:],
        )

    before = trains(3)
    killed_at = len(job.log)
    os.kill(before[1], signal.SIGKILL)
    assert set(trains(2, since=killed_at)) == {0, 2}
    wait_for(
        "another process 1",
        lambda: (pids := job.pids(3)).keys() == {0, 1, 2} and pids[1] != before[1],
        timeout_seconds=START_SECONDS,
        detail=lambda: job.log[-4000:],
    )
    after = job.pids(3)
    assert (after[0], after[2]) == (before[0], before[2])
    assert "rank 1 ended with SIGKILL; starting it again in 1 s" in job.log

    job.process.terminate()
    assert job.wait() == 128 + signal.SIGTERM
    assert re.search(r"rank 1 +2 +SIGKILL, status 143 \(given up\)", job.log), job.log[-2000:]


def test_ranks_of_a_machine_are_in_the_order_of_its_processes(launched: list[Launched], tmp_path: Path) -> None:
    train = [sys.executable, str(SCRIPT), "--rdzv-conf", CONF, "--steps", "3"]
    job = Launched(tmp_path, "--nproc-per-node", "3", program=train)
    launched.append(job)
    assert job.wait(START_SECONDS) == 0, job.log[-4000:]
    ranks = set(re.findall(r"^\[(\d+)\] step=\d+ world=1 rank=(\d+)/3", job.log, re.MULTILINE))
    assert ranks == {("0", "0"), ("1", "1"), ("2", "2")}


def test_launcher_gives_up_a_process_that_fails_too_often(launched: list[Launched], tmp_path: Path) -> None:
    job = Launched(tmp_path, "--max-restarts", "1", program=["sh", "-c", "echo here $LOCAL_RANK-$RANK-; exit 3"])
    launched.append(job)
    assert job.wait() == 1
    assert job.log.count("[0] here 0--") == 2, job.log
    assert "it is not started again; restarts within the last hour: 1" in job.log
    assert re.search(r"rank 0 +2 +status 3, status 3 \(given up\)", job.log)


def test_launcher_forwards_signals(launched: list[Launched], tmp_path: Path) -> None:
    program = ["sh", "-c", "trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done"]
    job = Launched(tmp_path, "--nproc-per-node", "2", program=program)
    launched.append(job)
    wait_for("both are ready", lambda: job.log.count("ready") == 2)
    job.process.send_signal(signal.SIGUSR1)
    wait_for("both got it", lambda: {"[0] got USR1", "[1] got USR1"} <= set(job.log.splitlines()))
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 130


def test_signal_of_the_launcher_does_not_reach_children_which_end_with_their_process(
    launched: list[Launched], tmp_path: Path
) -> None:
    """torch ends a program whose data loader was ended by a signal."""
    trap = "trap 'kill -0 $child && echo it lives; exit 0' TERM"
    program = ["sh", "-c", f"sleep 600 & child=$!; {trap}; echo child $child.; while :; do sleep 0.05; done"]
    job = Launched(tmp_path, program=program)
    launched.append(job)
    found = wait_for("the child", lambda: re.search(r"child (\d+)\.", job.log))
    job.process.terminate()
    assert job.wait() == 128 + signal.SIGTERM
    assert "[0] it lives" in job.log
    stat = Path(f"/proc/{found[1]}/stat")
    wait_for("its end", lambda: not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z"))


def test_process_that_has_left_as_requested_is_not_started_again(launched: list[Launched], tmp_path: Path) -> None:
    program = ["sh", "-c", 'if [ "$LOCAL_RANK" = 1 ]; then exit 143; fi; sleep 2']
    job = Launched(tmp_path, "--nproc-per-node", "2", program=program)
    launched.append(job)
    assert job.wait() == 0, job.log
    assert "rank 1 has left the run as requested, and is not started again" in job.log


def test_machine_whose_processes_have_all_left_did_not_succeed(launched: list[Launched], tmp_path: Path) -> None:
    job = Launched(tmp_path, program=["sh", "-c", "exit 143"])
    launched.append(job)
    assert job.wait() == 143, job.log


def test_process_that_fails_after_the_success_of_another_is_not_started_again(
    launched: list[Launched], tmp_path: Path
) -> None:
    """It would begin the next run of the id, alone."""
    program = ["sh", "-c", 'if [ "$LOCAL_RANK" = 1 ]; then sleep 1; exit 3; fi']
    job = Launched(tmp_path, "--nproc-per-node", "2", program=program)
    launched.append(job)
    assert job.wait() == 1, job.log
    assert "rank 1 ended with status 3; it is not started again, because others have ended with status 0" in job.log


def test_states_of_a_progress_bar_are_lines(launched: list[Launched], tmp_path: Path) -> None:
    job = Launched(tmp_path, program=["printf", "1%%\\r2%%\\r\\nnext\\nrest"])
    launched.append(job)
    assert job.wait() == 0, job.log
    lines = [line for line in job.log.splitlines() if line.startswith("[0]")]
    assert lines == ["[0] 1%", "[0] 2%", "[0] next", "[0] rest"]


def test_server_runs_where_it_was_requested_whatever_the_environment_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lattice_rdzv.cli", "run", "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "KUBERNETES_SERVICE_HOST": "10.96.0.1", "LATTICE_RDZV_ENDPOINTS": "elsewhere:2379"}
    program = ["sh", "-c", "echo endpoint $LATTICE_RDZV_ENDPOINTS"]
    result = subprocess.run([*command, "--", *program], capture_output=True, text=True, env=environment)
    assert re.search(r"^\[0\] endpoint (http://)?127\.0\.0\.1:\d+$", result.stdout, re.MULTILINE), result
    result = subprocess.run([*command, "--endpoint", "a:1", "--", *program], capture_output=True, text=True)
    assert result.returncode == 2
    assert "`--listen` runs a server and `--endpoint` uses another one" in result.stderr


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 1.0), (1, 2.0), (5, 32.0), (6, 60.0), (60, 60.0)])
def test_pause_before_a_start_doubles_up_to_a_minute(restarts: int, seconds: float) -> None:
    assert run.pause_seconds(restarts) == seconds


def test_missing_program_is_an_error() -> None:
    result = subprocess.run([sys.executable, "-m", "lattice_rdzv.cli", "run"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "the program is missing" in result.stderr
