"""`lattice-rdzv drain` requests that a node leaves its run, as on SIGTERM."""

import argparse
import json
import sys
import time

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError
from lattice_rdzv.types import NodeStatus, RunStatus

from . import nodes, service

EXAMPLES = """\
The process of the node announces that it leaves and receives SIGTERM, so it does whatever it does on SIGTERM, such as
saving a checkpoint. The other nodes form the next round without it, and a spare takes its place.

exit status:
  0 the node was asked to leave; with --wait, it has left, and the next round has formed or waits for nodes that are missing
  1 no such node, the node has not left in time, or another error
  5 no such run, 8 service unreachable, 2 wrong usage

examples:
  lattice-rdzv drain my-job n17
  lattice-rdzv drain my-job n17 --wait --why 'machine needs a reboot'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `drain`."""
    service.add_run_arguments(parser, prints_json=False)
    parser.add_argument("node", help="name or id of the node")
    parser.add_argument("--why", default="", metavar="TEXT", help="reason, which the node logs")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="wait until the node has left, and the next round has formed or waits for nodes that are missing",
    )
    parser.add_argument(
        "--wait-timeout", type=float, default=120.0, metavar="SECONDS", help="time limit of --wait (default: 120)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Requests that the node leaves, and waits for that if asked to."""
    try:
        settings = service.settings(arguments, run_id=arguments.run_id, tenant=arguments.tenant)
        node = nodes.look_up(settings, arguments.node, arguments.timeout)
        if isinstance(node, int):
            return node
        call = _core.drain_node(
            settings, node.id, by=service.operator(), why=arguments.why, timeout_seconds=arguments.timeout
        )
        if not call.wait():
            print(f"node `{node.name}` left run `{settings.run_id}` before it could be asked to")
            return 0
        print(f"node `{node.name}` was asked to leave run `{settings.run_id}`", flush=True)
        return wait_until_gone(settings, node, arguments) if arguments.wait else 0
    except RendezvousError as error:
        return service.failed(error)


def wait_until_gone(settings: _core.Settings, node: NodeStatus, arguments: argparse.Namespace) -> int:
    """Follows the run until the node is gone, and the others are in a round or wait for nodes that are not there."""
    watch = _core.StatusWatch(settings, timeout_seconds=arguments.timeout)
    deadline = time.monotonic() + arguments.wait_timeout
    while True:
        left = deadline - time.monotonic()
        text, _ = watch.next(timeout_seconds=max(0.05, min(left, 5.0))).wait()
        status = RunStatus.from_json(json.loads(text))
        ids = {each.id for each in status.nodes if each.state != "missing"}
        # A member that knows of the change is about to request the round, or the round forms without it.
        is_due = status.verdict.waits_for_count == 0 or any(each.state == "told" for each in status.nodes)
        forms = status.verdict.state == "forming" and is_due
        if node.id not in ids and not forms:
            print(f"node `{node.name}` has left; {status.verdict.sentence}")
            return 0
        if left <= 0:
            state = "is still here" if node.id in ids else "has left, but the next round has not formed"
            limit = f"{arguments.wait_timeout:g} s"
            print(f"node `{node.name}` {state} after {limit}; {status.verdict.sentence}", file=sys.stderr)
            return 1
