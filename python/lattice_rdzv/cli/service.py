"""Options and settings of the commands that read from a service without joining a run."""

import argparse
import os
import socket

from lattice_rdzv import _core

# The run id of commands that need no run, because settings require one.
NO_RUN = "lattice-rdzv-doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--endpoint` and the other options for reaching a service."""
    parser.add_argument(
        "--endpoint", default="", help="address of the service (default: from the environment, as for an agent)"
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="time limit for the service (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


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
