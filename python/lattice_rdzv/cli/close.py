"""`lattice-rdzv close` closes a run for good."""

import argparse
import sys

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

from . import service
from .near import no_such_run

EXAMPLES = """\
exit status:
  0 the run is closed with this outcome, 1 it was closed before with another one, or another error,
  5 no such run, 8 service unreachable, 2 wrong usage

examples:
  lattice-rdzv close my-job --outcome ended --why 'superseded by my-job-2'
  lattice-rdzv close my-job --outcome failed --why 'loss is NaN'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `close`."""
    service.add_run_arguments(parser, prints_json=False)
    parser.add_argument(
        "--outcome",
        required=True,
        choices=("succeeded", "failed", "ended"),
        help="how the run ended; agents of a failed or ended run stop with an error",
    )
    parser.add_argument("--why", required=True, metavar="TEXT", help="reason, which every node logs")


def run(arguments: argparse.Namespace) -> int:
    """Closes the run and says what happened."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        call = _core.close_run(
            settings, arguments.outcome, by=service.operator(), why=arguments.why, timeout_seconds=arguments.timeout
        )
        closing = call.wait()
    except RendezvousError as error:
        return service.failed(error)
    if closing is None:
        print(no_such_run(settings, arguments.timeout), file=sys.stderr)
        return service.ABSENT
    is_new, outcome, by, why = closing
    if is_new:
        print(f"run `{settings.run_id}` is closed as {outcome}: {why}")
        return 0
    reason = f": {why}" if why else ""
    print(f"run `{settings.run_id}` was already closed as {outcome} by `{by}`{reason}", file=sys.stderr)
    return 0 if outcome == arguments.outcome else 1
