"""The command `lattice-rdzv`. Each subcommand is a module with `add_arguments(parser)` and `run(arguments) -> status`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lattice_rdzv import __version__, _logs

from . import close, completion, dashboard, demo, doctor, drain, lost, run, serve, status, timeline


class Command(NamedTuple):
    """A subcommand: its summary, the two functions of its module, and examples for its help."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str = ""


def _complete(arguments: argparse.Namespace) -> int:
    options: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        words = [option for action in parser._actions for option in action.option_strings]
        words += [str(choice) for action in parser._actions for choice in action.choices or ()]
        options[name] = words
    print(completion.script(arguments.shell, options), end="")
    return 0


COMMANDS = {
    "close": Command("Close a run for good.", close.add_arguments, close.run, close.EXAMPLES),
    "completion": Command(
        "Print a script that completes commands and options in a shell.",
        completion.add_arguments,
        _complete,
        completion.EXAMPLES,
    ),
    "dashboard": Command(
        "Show the runs in a browser: what each waits for, which nodes are missing, and what happens next.",
        dashboard.add_arguments,
        dashboard.run,
        dashboard.EXAMPLES,
    ),
    "demo": Command(
        "Run a real elastic job on this machine: it forms, grows, loses an agent, and continues.",
        demo.add_arguments,
        demo.run,
    ),
    "doctor": Command(
        "Find problems that would keep nodes from forming a round, and print a fix for each.",
        doctor.add_arguments,
        doctor.run,
        doctor.EXAMPLES,
    ),
    "drain": Command(
        "Ask a node to leave a run, as on SIGTERM; a spare takes its place.",
        drain.add_arguments,
        drain.run,
        drain.EXAMPLES,
    ),
    "lost": Command(
        "Report that a node is dead, so that the others do not wait for its lease to end.",
        lost.add_arguments,
        lost.run,
        lost.EXAMPLES,
    ),
    "run": Command(
        "Run the training processes of this machine, and start those that die again while the others continue.",
        run.add_arguments,
        run.run,
    ),
    "serve": Command(
        "Run the embedded server: an etcd-compatible server that keeps its data in memory.",
        serve.add_arguments,
        serve.run,
    ),
    "status": Command(
        "Show what a run does or waits for, which nodes are missing, and what happens next.",
        status.add_arguments,
        status.run,
        status.EXAMPLES,
    ),
    "timeline": Command(
        "Show the rounds of a run, the changes and losses between them, and the time without a world.",
        timeline.add_arguments,
        timeline.run,
        timeline.EXAMPLES,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lattice-rdzv",
        description="Rendezvous for elastic training jobs on etcd.",
        epilog="If a job does not continue, `lattice-rdzv status` shows what it waits for.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lattice-rdzv {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter if command.examples else argparse.HelpFormatter,
        )
        command.add_arguments(subparser)
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
