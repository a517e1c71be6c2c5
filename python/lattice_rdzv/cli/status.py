"""`lattice-rdzv status` shows what a run does or waits for, and what happens next."""

import argparse
import json
import shutil
import sys
import time

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError, UnreachableError
from lattice_rdzv.types import RunStatus

from . import service
from .near import no_such_run
from .status_text import change_line, clipped, clock, describe, run_rows
from .terminal import table

EXAMPLES = """\
exit status:
  0 formed, 3 forming, 4 stuck, 5 no such run, 6 closed as succeeded, 7 closed as failed or ended,
  8 service unreachable, 2 wrong usage, 1 other errors; a list of runs exits with 0

A run is stuck if nothing will change without outside intervention, or if a limit that the status shows has passed.

examples:
  lattice-rdzv status                       the only run of the tenant, or a list of all runs
  lattice-rdzv status my-job                what the run waits for, since when, and what happens next
  lattice-rdzv status my-job --watch        this status, redrawn at each change; in a pipe, one line for each change
  lattice-rdzv status my-job --node n7      also the last sign of life of node n7
  lattice-rdzv status --all                 all runs, one in each line
  lattice-rdzv status my-job --json | jq .verdict
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `status`."""
    service.add_run_arguments(parser, optional=True)
    parser.add_argument("--watch", action="store_true", help="follow the run until it is closed")
    parser.add_argument("--all", action="store_true", help="list all runs of the tenant")
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME", help="show this node's last sign of life"
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status of the run's state; see `EXAMPLES`."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        if arguments.all or settings.run_id == service.NO_RUN:
            return show_runs(arguments, settings)
        return show_run(arguments, settings)
    except RendezvousError as error:
        # A service that is not reached is a status, not an error.
        return service.failed(error, unreachable=1)


def show_runs(arguments: argparse.Namespace, settings: _core.Settings) -> int:
    """Lists the runs, or shows the only one."""
    documents = service.read_runs(arguments, settings)
    if isinstance(documents, int):
        return documents
    if len(documents) == 1 and not arguments.all:
        only = service.settings(arguments, run_id=documents[0]["run"]["id"], tenant=arguments.tenant)
        return show_run(arguments, only)
    if arguments.watch and documents:
        names = ", ".join(document["run"]["id"] for document in documents[:5])
        print(f"`--watch` follows one run; name it, for example one of: {names}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(documents, indent=2))
        return 0 if documents else service.ABSENT
    if not documents:
        print(f"there is no run of this tenant at {', '.join(settings.endpoints)}", file=sys.stderr)
        return service.ABSENT
    width = columns()
    rows = run_rows([RunStatus.from_json(document) for document in documents])
    print("\n".join(clipped(text, width) for text in table(rows, indent="").splitlines()))
    return 0


def show_run(arguments: argparse.Namespace, settings: _core.Settings) -> int:
    """Shows one run, once or until it is closed."""
    if arguments.watch:
        return watch_run(arguments, settings)
    call = _core.status(settings, timeout_seconds=arguments.timeout, names=arguments.node, or_unreachable=True)
    document = json.loads(call.wait())
    status = RunStatus.from_json(document)
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif status.verdict.state == "absent":
        print(no_such_run(settings, arguments.timeout), file=sys.stderr)
    else:
        print(describe(status, width=columns(), options=service.passed(arguments)))
    return status.verdict.exit_status


def watch_run(arguments: argparse.Namespace, settings: _core.Settings) -> int:
    """Follows a run by watches. Ends when the run is closed."""
    watch = _core.StatusWatch(settings, timeout_seconds=arguments.timeout)
    redraws = sys.stdout.isatty() and not arguments.json
    drawn = 0
    last = ""
    while True:
        try:
            text, changed = watch.next(timeout_seconds=1.0 if redraws else 5.0).wait()
        except UnreachableError as error:
            return service.failed(error)
        document = json.loads(text)
        status = RunStatus.from_json(document)
        if arguments.json and changed:
            print(json.dumps(document), flush=True)
        elif redraws:
            size = shutil.get_terminal_size((100, 40))
            lines = describe(
                status, now=time.time(), width=size.columns, options=service.passed(arguments)
            ).splitlines()[: size.lines - 1]
            up = f"\x1b[{drawn}F" if drawn else ""
            sys.stdout.write(f"{up}\x1b[J" + "".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
            drawn = len(lines)
        elif not arguments.json:
            current = change_line(status)
            if current != last:
                print(f"{clock(status.at)}  {current}", flush=True)
                last = current
        if status.run.closed is not None:
            return status.verdict.exit_status


def columns() -> int:
    """The width of the terminal. In a pipe, lines are not cut."""
    return shutil.get_terminal_size((100, 40)).columns if sys.stdout.isatty() else 100_000
