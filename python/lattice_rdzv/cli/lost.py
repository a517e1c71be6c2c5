"""`lattice-rdzv lost` reports that a node is dead, so that the others do not wait for its lease to end."""

import argparse
import sys

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError

from . import nodes, service

EXAMPLES = """\
The coordinator of the run connects to the node. If the address of its lifelines refuses the connection, the node is dead: the coordinator deletes its record, and the other nodes form the next round. Otherwise nothing changes.
With --force, the coordinator does not connect to the node. A node that is alive then learns that it was reported lost,
and joins again.

exit status:
  0 the node is lost or has left
  3 the node is alive
  4 its address does not show whether it is dead, or the coordinator has not answered in time; the lease of the node decides
  1 no such node, or another error
  5 no such run, 8 service unreachable, 2 wrong usage

examples:
  lattice-rdzv lost my-job n17 --why 'its agent crashed'
  lattice-rdzv lost my-job n17 --why 'its machine has no power' --force
"""

ALIVE = 3
UNKNOWN = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `lost`."""
    service.add_run_arguments(parser, prints_json=False)
    parser.add_argument("node", help="name or id of the node")
    parser.add_argument("--why", default="", metavar="TEXT", help="reason, which the evidence of the loss contains")
    parser.add_argument("--force", action="store_true", help="declare the node lost without a check")


def run(arguments: argparse.Namespace) -> int:
    """Reports the node, and prints the verdict."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        node = nodes.look_up(settings, arguments.node, arguments.timeout)
        if isinstance(node, int):
            return node
        verdict = _core.report_lost(
            settings,
            node.id,
            by=service.operator(),
            why=arguments.why,
            force=arguments.force,
            timeout_seconds=arguments.timeout,
        ).wait()
        return print_verdict(settings.run_id, node.name, verdict)
    except RendezvousError as error:
        return service.failed(error)


def print_verdict(run_id: str, name: str, verdict: tuple[str, str]) -> int:
    """Prints the verdict, and returns the exit status for it."""
    word, detail = verdict
    node = f"node `{name}` of run `{run_id}`"
    advice = "its lease decides; `--force` declares it lost"
    match word:
        case "lost":
            print(f"{node} is lost: {detail}")
            return 0
        case "gone":
            print(f"{node} has left")
            return 0
        case "alive":
            print(f"{node} is alive", file=sys.stderr)
            return ALIVE
        case "unknown":
            print(f"{node}: its address does not show whether it is dead; {advice}", file=sys.stderr)
            return UNKNOWN
        case "unanswered":
            print(f"{node}: the coordinator has not answered in time; {advice}", file=sys.stderr)
            return UNKNOWN
        case _:
            print(f"{node} cannot be reported: {detail}", file=sys.stderr)
            return 1
