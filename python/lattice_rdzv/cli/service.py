"""Options and settings of the commands that look at a service without joining a run."""

import argparse
import os
import socket

from lattice_rdzv import _core

# The run that a command looks at when it needs none: settings want a name.
NO_RUN = "lattice-rdzv-doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--endpoint` and what else says how a service is reached."""
    parser.add_argument(
        "--endpoint", default="", help="the service; default: from the environment, as an agent finds it"
    )
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="how long to wait for it (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def settings(arguments: argparse.Namespace, *, run_id: str = "", tenant: str = "", nnodes: str = "") -> _core.Settings:
    """The settings that an agent would have here. Raises what an agent would raise."""
    given = {
        # What torchrun would pass on as `--rdzv-endpoint`.
        "endpoint": arguments.endpoint or os.environ.get("PET_RDZV_ENDPOINT", ""),
        "run_id": run_id,
        "tenant": tenant,
        "nnodes": nnodes,
        # `--timeout` bounds the whole of a command; a first connection has a least time of its own.
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
