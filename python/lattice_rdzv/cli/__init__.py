"""The command `lattice-rdzv`: one module a command, each with `add_arguments(parser)` and `run(arguments) -> status`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import demo, doctor, serve, status


class Command(NamedTuple):
    """What a module contributes."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "demo": Command(
        "Run a real elastic job here: it forms, grows, loses an agent and goes on.", demo.add_arguments, demo.run
    ),
    "doctor": Command(
        "Look for what would keep a job from meeting, and say what to do about it.", doctor.add_arguments, doctor.run
    ),
    "serve": Command(
        "Serve the embedded store: what an etcd would be, in memory, until it is stopped.",
        serve.add_arguments,
        serve.run,
    ),
    "status": Command("Show a run as the service has it: round, nodes, history.", status.add_arguments, status.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lattice-rdzv", description="The rendezvous of elastic training jobs on etcd.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.summary, description=command.summary))
    parsed = parser.parse_args(arguments)
    try:
        status = COMMANDS[parsed.command].run(parsed)
        # Here, where the error can be caught, and not when the interpreter exits.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone, as `head` does. What is still buffered must not fail a second time at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
