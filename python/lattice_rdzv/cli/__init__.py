"""The command `lattice-rdzv`. Each subcommand is a module with `add_arguments(parser)` and `run(arguments) -> status`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lattice_rdzv import __version__, _logs

from . import demo, doctor, serve, status


class Command(NamedTuple):
    """A subcommand: its summary and the two functions of its module."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "demo": Command(
        "Run a real elastic job on this machine: it forms, grows, loses an agent, and continues.",
        demo.add_arguments,
        demo.run,
    ),
    "doctor": Command(
        "Find problems that would keep nodes from forming a round, and print a fix for each.",
        doctor.add_arguments,
        doctor.run,
    ),
    "serve": Command(
        "Run the embedded server: an etcd-compatible server that keeps its data in memory.",
        serve.add_arguments,
        serve.run,
    ),
    "status": Command("Show the state of a run: round, nodes, history.", status.add_arguments, status.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lattice-rdzv", description="Rendezvous for elastic training jobs on etcd.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lattice-rdzv {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.summary, description=command.summary))
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    _logs.is_of_a_command()
    try:
        status = COMMANDS[parsed.command].run(parsed)
        # Flush here, where the error can be caught, and not when the interpreter exits.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. The remaining buffer must not fail a second time at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
