"""Options and settings of the commands that read from a service without joining a run."""

import argparse
import getpass
import json
import os
import shlex
import socket
import sys
from typing import Any

from lattice_rdzv import _core
from lattice_rdzv.errors import RendezvousError, SettingsError, UnreachableError

# The run id of commands that need no run, because settings require one.
NO_RUN = "lattice-rdzv-doctor"
# Exit statuses that several commands share.
USAGE = 2
ABSENT = 5
UNREACHABLE = 8


def add_arguments(parser: argparse.ArgumentParser, *, prints_json: bool = True) -> None:
    """Adds `--endpoint` and the other options for reaching a service."""
    parser.add_argument(
        "--endpoint",
        default="",
        help="address of the service, host:port (default: LATTICE_RDZV_ENDPOINTS, or where an agent would look here)",
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="time limit for the service (default: 5)"
    )
    if prints_json:
        parser.add_argument("--json", action="store_true", help="print JSON")


def add_run_arguments(parser: argparse.ArgumentParser, *, optional: bool = False, prints_json: bool = True) -> None:
    """Adds the run, the tenant, and the options for reaching a service."""
    if optional:
        parser.add_argument("run_id", nargs="?", default="", metavar="RUN", help="run id (default: LATTICE_RDZV_ID)")
    else:
        parser.add_argument("run_id", metavar="RUN", help="run id")
    parser.add_argument("--tenant", default="", help="tenant of the run (default: LATTICE_RDZV_TENANT, or `default`)")
    add_arguments(parser, prints_json=prints_json)


def passed(arguments: argparse.Namespace) -> str:
    """Returns the options that lead to the same service and tenant, for another command line."""
    given = {"--endpoint": arguments.endpoint, "--tenant": arguments.tenant}
    return shlex.join(part for name, value in given.items() if value for part in (name, value))


def failed(error: RendezvousError, *, unreachable: int = UNREACHABLE) -> int:
    """Prints an error, and returns the exit status for it.

    Args:
        error: What ended the command.
        unreachable: The exit status if the service was not reached or refused this client.
    """
    print(error, file=sys.stderr)
    if isinstance(error, SettingsError):
        return USAGE
    return unreachable if isinstance(error, UnreachableError) else 1


def read_runs(arguments: argparse.Namespace, settings: _core.Settings) -> list[dict[str, Any]] | int:
    """Reads all runs of the tenant. If the service is not reached, prints the error, and returns the exit status."""
    try:
        runs: list[dict[str, Any]] = json.loads(_core.runs(settings, timeout_seconds=arguments.timeout).wait())
    except UnreachableError as error:
        return failed(error)
    return runs


def operator() -> str:
    """Names the person and the machine that act, for the nodes' logs."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a UID without a name.
        user = f"uid {os.getuid()}"
    return f"{user} at {socket.gethostname()}"


def settings(arguments: argparse.Namespace, *, run_id: str = "", tenant: str = "", nnodes: str = "") -> _core.Settings:
    """Returns the settings that an agent would have here. Raises the errors that an agent would raise."""
    given = {
        # torchrun passes this variable on as `--rdzv-endpoint`.
        "endpoint": arguments.endpoint or os.environ.get("PET_RDZV_ENDPOINT", ""),
        "run_id": run_id,
        "tenant": tenant,
        "nnodes": nnodes,
        # `--timeout` limits the whole command, but `connect_timeout` has a minimum of 1 s.
        "connect_timeout": str(max(1.0, arguments.timeout)),
        "host_name": socket.gethostname(),
    }
    if not run_id and not os.environ.get("LATTICE_RDZV_ID"):
        given["run_id"] = NO_RUN
    if not nnodes and not os.environ.get("LATTICE_NNODES"):
        given["nnodes"] = "1"
    return _core.Settings(
        {name: value for name, value in given.items() if value}, dict(os.environ), origin="command line"
    )
