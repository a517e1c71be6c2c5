"""`lattice-rdzv run` starts the training processes of one machine, each a node of the run.

Problem: torchrun restarts all processes of a machine when one of them dies, so none can survive. Design: this launcher
starts a process that died again, and leaves the others alone. It takes no part in the run and decides nothing: the
processes find each other by the rendezvous service. Without a service, the launcher runs the embedded server, because a
training process that hosted it could not be lost.
"""

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import FrameType

from lattice_rdzv._serve import serve
from lattice_rdzv.errors import RendezvousError

from .terminal import table

HOUR_SECONDS = 3600.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
POLL_SECONDS = 0.05
# How long a process has for its step and its departure after the first signal.
GRACE_SECONDS = 30.0
# Of a process that has completed its step and left after SIGTERM, which `lattice-rdzv drain` also sends.
LEFT_STATUS = 128 + signal.SIGTERM
# Longer lines of output are copied in pieces.
LONGEST_LINE_BYTES = 1 << 16
# A line of output. A progress bar ends each of its states with a carriage return. One at the end may belong to a line feed.
_LINE_END = re.compile(rb"\r?\n|\r(?=.)", re.DOTALL)
ENDPOINT_VARIABLES = ("LATTICE_RDZV_ENDPOINTS", "KUBERNETES_SERVICE_HOST")
# Variables of torchrun and of this command that mean something else in a process of this launcher.
_FOREIGN = ("RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_MACHINE_VARIABLES = ("LATTICE_NODE_INDEX", "JOB_COMPLETION_INDEX", "SLURM_NODEID")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `run`."""
    parser.add_argument(
        "--nproc-per-node", type=_count, default=1, metavar="N", help="processes on this machine (default: 1)"
    )
    parser.add_argument(
        "--nnodes",
        default=os.environ.get("LATTICE_NNODES", ""),
        metavar="MIN:MAX",
        help="number of processes of the whole run, each of which is a node (default: LATTICE_NNODES, else 1:N)",
    )
    parser.add_argument(
        "--endpoint",
        default="",
        metavar="HOST:PORT",
        help="address of the rendezvous service (default: from the environment, else this command runs the embedded server)",
    )
    parser.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="address of the embedded server, which this command then runs (default: 127.0.0.1, any port, without a service)",
    )
    parser.add_argument(
        "--run-id", default=os.environ.get("LATTICE_RDZV_ID", ""), help="name of the run (default: LATTICE_RDZV_ID)"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=10,
        metavar="N",
        help="maximum number of restarts of each process per hour (default: 10)",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM", help="program with its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if each process has ended with 0, or has left while another one ended with 0; 128 and the number of a signal
    that was passed on, or that made all processes leave; 1 otherwise; 2 if the options are wrong.
    """
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        print("the program is missing; pass it after `--`, as in: lattice-rdzv run -- python train.py", file=sys.stderr)
        return 2
    if arguments.endpoint and arguments.listen:
        print("`--listen` runs a server and `--endpoint` uses another one; pass one of them", file=sys.stderr)
        return 2
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    with ExitStack() as stack:
        endpoint = arguments.endpoint
        if arguments.listen or not (endpoint or any(os.environ.get(name) for name in ENDPOINT_VARIABLES)):
            from .listen import address, loopback_warning

            try:
                host, port = address(arguments.listen or "127.0.0.1:0")
                server = stack.enter_context(serve(host, port))
            except (RendezvousError, argparse.ArgumentTypeError) as error:
                print(error, file=sys.stderr)
                return 1
            endpoint = server.endpoint
            if warning := loopback_warning(host, endpoint):
                say(warning)
        run_id = arguments.run_id or f"run-{socket.gethostname()}-{os.getpid()}"
        if endpoint:
            environment["LATTICE_RDZV_ENDPOINTS"] = endpoint
            say(f"to see its state: {shlex.join(['lattice-rdzv', 'status', run_id, '--endpoint', endpoint])}")
        environment["LATTICE_RDZV_ID"] = run_id
        # Python buffers the output to a pipe, and what it holds is lost with the process.
        environment.setdefault("PYTHONUNBUFFERED", "1")
        # What `job.run` waits for.
        environment.setdefault("LATTICE_RDZV_LOG", "info")
        environment["LATTICE_NNODES"] = arguments.nnodes or f"1:{arguments.nproc_per_node}"
        launcher = Launcher(program, environment, arguments.nproc_per_node, max_restarts=arguments.max_restarts)
        stack.enter_context(launcher.passing_signals())
        status = launcher.run()
    with suppress(OSError, ValueError):
        print(launcher.report(), file=sys.stderr)
    return status


@dataclass
class Process:
    """One of the machine's processes, and its starts."""

    local_rank: int
    popen: "subprocess.Popen[bytes] | None" = None
    output: threading.Thread | None = None
    starts: int = 0
    restarts: deque[float] = field(default_factory=deque)
    start_at: float = 0.0
    statuses: list[int] = field(default_factory=list)
    given_up: bool = False

    @property
    def is_done(self) -> bool:
        """Whether the process has ended and is not restarted."""
        return self.popen is None and (self.given_up or self.has_succeeded or self.has_left)

    @property
    def has_succeeded(self) -> bool:
        """Whether its last start ended with 0."""
        return self.statuses[-1:] == [0]

    @property
    def has_left(self) -> bool:
        """Whether it left the run because it was asked to."""
        return self.statuses[-1:] == [LEFT_STATUS]


class Launcher:
    """The processes of one machine."""

    def __init__(self, program: list[str], environment: Mapping[str, str], count: int, *, max_restarts: int) -> None:
        self._program = program
        self._environment = dict(environment)
        self._processes = [Process(number) for number in range(count)]
        self._max_restarts = max_restarts
        self._signal: int | None = None
        self._kill_at = float("inf")

    def run(self) -> int:
        """Starts the processes, and restarts those that die, until all have ended."""
        try:
            while not all(one.is_done for one in self._processes):
                now = time.monotonic()
                for process in self._processes:
                    self._look_after(process, now)
                if now > self._kill_at:
                    self._send(signal.SIGKILL)
                time.sleep(POLL_SECONDS)
        finally:
            self._send(signal.SIGKILL)
            for process in self._processes:
                if process.output is not None:
                    process.output.join(timeout=1.0)
        if self._signal is not None:
            return 128 + self._signal
        if all(one.has_left for one in self._processes):
            return LEFT_STATUS
        return 0 if all(one.has_succeeded or one.has_left for one in self._processes) else 1

    def report(self) -> str:
        """Returns a table of the processes and how they have ended. Pure."""
        rows = [["PROCESS", "STARTS", "ENDED WITH"]]
        for one in self._processes:
            ends = ", ".join(describe_status(status) for status in one.statuses) or "-"
            rows.append([f"rank {one.local_rank}", str(one.starts), ends + (" (given up)" if one.given_up else "")])
        return table(rows)

    def passing_signals(self) -> ExitStack:
        """Passes signals on to the processes until the returned context ends."""
        stack = ExitStack()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            # `nohup` has SIGHUP ignored, by the processes as well.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, self._pass_on))
        return stack

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._signal = self._signal or number
            self._kill_at = min(self._kill_at, time.monotonic() + GRACE_SECONDS)
        # A program finishes its step after SIGTERM, and a KeyboardInterrupt would end it in the middle.
        self._send(signal.SIGTERM if number == signal.SIGINT else number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.popen is not None:
                # Not to its children: torch ends a program whose data loader was ended by a signal.
                send = os.killpg if number == signal.SIGKILL else os.kill
                with suppress(ProcessLookupError):
                    send(process.popen.pid, number)

    def _look_after(self, process: Process, now: float) -> None:
        if process.popen is not None:
            pid = process.popen.pid
            # Its group has its id, which belongs to no other process until it is reaped.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._ended(process, process.popen.wait(), now)
        elif not process.is_done and now >= process.start_at:
            self._start(process)

    def _ended(self, process: Process, status: int, now: float) -> None:
        process.popen = None
        process.statuses.append(status)
        if process.has_succeeded:
            return
        if self._is_stopping():
            process.given_up = True
            return
        if process.has_left:
            say(f"rank {process.local_rank} has left the run as requested, and is not started again")
            return
        while process.restarts and now - process.restarts[0] > HOUR_SECONDS:
            process.restarts.popleft()
        what = f"rank {process.local_rank} ended with {describe_status(status)}"
        if any(one.has_succeeded for one in self._processes):
            # A process that joined now would begin the next run of this id, alone.
            process.given_up = True
            say(f"{what}; it is not started again, because others have ended with status 0")
            return
        if len(process.restarts) >= self._max_restarts:
            process.given_up = True
            say(
                f"{what}; it is not started again; restarts within the last hour: {len(process.restarts)} (`--max-restarts`)"
            )
            return
        pause = pause_seconds(len(process.restarts))
        process.restarts.append(now)
        process.start_at = now + pause
        say(f"{what}; starting it again in {pause:g} s; the other processes continue")

    def _is_stopping(self) -> bool:
        return self._signal is not None

    def _start(self, process: Process) -> None:
        if self._is_stopping():
            process.given_up = True
            return
        if any(one.has_succeeded for one in self._processes):
            process.given_up = True
            say(f"rank {process.local_rank} is not started again, because others have ended with status 0 meanwhile")
            return
        environment = {
            **self._environment,
            "LOCAL_RANK": str(process.local_rank),
            "LOCAL_WORLD_SIZE": str(len(self._processes)),
        }
        machine = next((value for name in _MACHINE_VARIABLES if (value := environment.get(name))), "")
        if machine:
            # `lattice_rdzv.torch.elastic.join` computes the index of the process from it.
            environment["GROUP_RANK"] = machine
        process.starts += 1
        try:
            process.popen = subprocess.Popen(
                self._program,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # So that its children can be killed with it.
                start_new_session=True,
            )
        except OSError as error:
            say(f"cannot start `{self._program[0]}`: {error}")
            process.statuses.append(127)
            process.given_up = True
            return
        if self._is_stopping():
            # The signal arrived during the start, when there was no process to send it to.
            process.popen.terminate()
        process.output = threading.Thread(target=copy_output, args=(process.popen, process.local_rank), daemon=True)
        process.output.start()


def copy_output(popen: "subprocess.Popen[bytes]", local_rank: int) -> None:
    """Copies the lines of a process to stdout, each with its rank, in one write."""
    assert popen.stdout is not None
    pending = b""
    while chunk := popen.stdout.read1(LONGEST_LINE_BYTES):  # type: ignore[attr-defined]
        *lines, pending = _LINE_END.split(pending + chunk)
        if len(pending) > LONGEST_LINE_BYTES:
            lines, pending = [*lines, pending], b""
        for line in lines:
            _copy_line(line, local_rank)
    if pending:
        _copy_line(pending.removesuffix(b"\r"), local_rank)


def _copy_line(line: bytes, local_rank: int) -> None:
    with suppress(OSError):
        os.write(1, b"[%d] %s\n" % (local_rank, line))


def pause_seconds(restarts: int) -> float:
    """Returns how long to wait before a start, after this many starts within the last hour. Pure."""
    return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**restarts))


def describe_status(status: int) -> str:
    """Returns a status of `subprocess` in words. Pure."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def say(text: str) -> None:
    """Writes one line about the processes."""
    # The terminal may be gone, which must not end the processes.
    with suppress(OSError, ValueError):
        print(f"lattice-rdzv run: {text}", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1: {text}")
    return int(text)
