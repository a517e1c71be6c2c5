"""`lattice-rdzv demo` runs a real elastic job that loses an agent, and prints a table of its rounds at the end. It then runs
a second job, in which the processes of the survivors continue, and prints how long both stood still.

The job uses the embedded server on a free port, or the etcd of `--etcd`, one `torchrun` for each node, and workers that
train over gloo (`demo_job.py`). The exit status is 0 if every step of the scenario succeeds. The demo requires torch and
changes nothing outside a temporary folder.
"""

import argparse
import importlib.util
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lattice_rdzv import _core
from lattice_rdzv._serve import serve
from lattice_rdzv.types import RoundStatus, RunStatus

from . import stops
from .demo_agents import NNODES, RUN_ID, ScenarioError, name, say, training
from .demo_survivors import PROCESSES, surviving
from .local_etcd import LocalEtcdError, serving_etcd
from .status_text import history_rows
from .terminal import coloured, table

STEPS_BETWEEN_EVENTS = 40
LOG_TAIL_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `demo`."""
    parser.add_argument(
        "--etcd", default="", metavar="PATH", help="etcd binary for the rendezvous (default: the embedded server)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if every step of the scenario succeeds."""
    if importlib.util.find_spec("torch") is None:
        print("the demo requires torch; install it with: python -m pip install torch", file=sys.stderr)
        return 2
    etcd = shutil.which(arguments.etcd) if arguments.etcd else None
    if arguments.etcd and etcd is None:
        print(f"`--etcd` must be an executable etcd, but is: {arguments.etcd}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="lattice-demo-"))
    keep = arguments.keep
    try:
        with stops.raised():
            run_scenario(folder, Path(etcd).absolute() if etcd else None)
    except stops.StopRequested as stop:
        return 128 + signal.Signals[str(stop)]
    except (ScenarioError, LocalEtcdError) as error:
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
    """Starts the rendezvous service of the job and yields its endpoint."""
    if etcd is not None:
        with serving_etcd(etcd, folder) as endpoint:
            yield endpoint
        return
    # The server's log lines would appear between the lines of the demo.
    logging.getLogger("lattice_rdzv").setLevel(logging.WARNING)
    with serve(port=0) as server:
        yield server.endpoint


def run_scenario(folder: Path, etcd: Path | None) -> None:
    """Runs the scenario and prints its rounds. Raises `ScenarioError` if a step fails."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(service(etcd, folder))
        job = stack.enter_context(training(folder, endpoint))

        say(job, "two nodes start; the job needs 2 to 4")
        job.start(1)
        job.start(2)
        first = job.wait_for_world("a world of node-1 and node-2", lambda world: set(world) == {1, 2})
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        say(job, "node-3 joins while the others train")
        job.start(3)
        grown = job.wait_for_world("a world with node-3 in it", lambda world: set(world) == {1, 2, 3})
        expect(
            [member for member in grown if member != 3] == first,
            f"ranks changed when node-3 joined: {first} -> {grown}",
        )
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        victim = grown[0]
        say(job, f"{name(victim)}, which has rank 0, loses its agent and its worker by SIGKILL")
        killed_at = time.monotonic()
        job.kill(victim)
        shrunk = job.wait_for_world(f"a world without {name(victim)}", lambda world: set(world) == {1, 2, 3} - {victim})
        restarted_seconds = time.monotonic() - killed_at
        # A node keeps its rank if the rank still exists. The last node takes the free rank.
        expect(shrunk == [grown[2], grown[1]], f"more ranks changed than necessary: {grown} -> {shrunk}")
        job.wait_for_steps(STEPS_BETWEEN_EVENTS)

        say(job, "the training ends")
        (folder / "enough").touch()
        statuses = job.wait_for_end()
        expect(
            all(status == 0 for node, status in statuses.items() if node != victim),
            f"an agent did not exit with status 0: {statuses}",
        )
        seconds = job.seconds
        history = read_history(endpoint)

        (folder / "enough").unlink()
        say(job, f"a second job without torchrun: {PROCESSES} processes start, and one is killed")
        survivors = stack.enter_context(surviving(folder, endpoint))
        reformed_seconds = survivors.kill_one()
        say(job, "the others continue in the same processes, and end")
        survivors.finish()
    worlds = [[name(member) for member in world] for world in job.worlds]
    expect(contains(worlds, [list(entry.names) for entry in history]), f"the service recorded other rounds: {history}")
    print()
    print(picture(history, {name(node): status for node, status in statuses.items()}))
    print(f"\nThe job took {seconds:.0f} s; its loss went from {job.losses[0]:.3f} to {job.losses[-1]:.5f}.")
    print(f"\nHow long the training stood still after the loss:\n{still(restarted_seconds, reformed_seconds)}")


def read_history(endpoint: str) -> list[RoundStatus]:
    """Returns the rounds that the service recorded."""
    settings = _core.Settings({"run_id": RUN_ID, "endpoint": endpoint, "nnodes": NNODES, "node_name": "demo"}, {})
    return list(RunStatus.from_json(json.loads(_core.status(settings).wait())).rounds)


def picture(history: list[RoundStatus], statuses: Mapping[str, int]) -> str:
    """Returns a table of the ranks in each round, and a table of each round's reason and duration."""
    header = ["", *(f"round {entry.round}" for entry in history), "end"]
    rows = [header]
    for node, status in statuses.items():
        cells = []
        for entry in history:
            names = entry.names
            cells.append(f"rank {names.index(node)}" if node in names else "-")
        rows.append([node, *cells, "killed" if status < 0 else f"status {status}"])
    return f"{table(rows)}\n\n{table(history_rows(history))}"


def still(restarted_seconds: float, reformed_seconds: float) -> str:
    """Returns a table of both ways to continue after a loss. Pure."""
    return table(
        [
            ["SURVIVING NODES", "STOOD STILL"],
            ["torchrun restarts their workers", f"{restarted_seconds:.2f} s"],
            ["the same processes form a new group", f"{reformed_seconds:.2f} s"],
        ]
    )


def contains(parts: list[list[str]], whole: list[list[str]]) -> bool:
    """Returns whether `parts` occur in `whole` in order."""
    rest = iter(whole)
    return all(part in rest for part in parts)


def expect(condition: bool, otherwise: str) -> None:
    """Ends the scenario if the condition does not hold."""
    if not condition:
        raise ScenarioError(otherwise)
