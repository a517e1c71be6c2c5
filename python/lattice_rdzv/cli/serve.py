"""`lattice-rdzv serve` runs the embedded server. It keeps its data in memory and ends with this command."""

import argparse
import resource
import sys

from lattice_rdzv import _core
from lattice_rdzv._serve import DEFAULT_PORT, serve
from lattice_rdzv.errors import SettingsError

from . import listen, stops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `serve`."""
    listen.add_arguments(parser, DEFAULT_PORT, clients="clients")
    parser.add_argument(
        "--listen-dashboard",
        type=listen.address_with_port,
        metavar="HOST:PORT",
        help="also serve the dashboard of the runs there, with --cert, --key, --user and --password-file, which an address "
        "beyond this machine requires",
    )
    parser.add_argument(
        "--dashboard-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name under which browsers reach the dashboard",
    )
    parser.add_argument("--client-ca", metavar="FILE", help="CA file; requires a client certificate of this CA")


def raise_open_files() -> None:
    """Raises the soft limit of open files to the hard limit, because each connection is a file and a common default is 1,024.

    Only this command raises it. A process that hosts the server for a job keeps its limit, because its workers inherit it
    and programs that use `select` fail above 1,024 files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        print(f"cannot raise the limit of open files: {error}", file=sys.stderr)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT and returns 0, or returns 1 if the server cannot start."""
    host, port = arguments.listen
    raise_open_files()
    _core.return_large_blocks()
    try:
        with (
            stops.raised(),
            serve(
                host,
                port,
                cert=arguments.cert,
                key=arguments.key,
                client_ca=arguments.client_ca,
                user=arguments.user,
                password_file=arguments.password_file,
                metrics=arguments.listen_metrics,
                dashboard=arguments.listen_dashboard,
                dashboard_hosts=arguments.dashboard_host,
            ) as server,
        ):
            if warning := listen.loopback_warning(host, server.endpoint):
                print(warning, file=sys.stderr)
            listen.print_endpoints(server.endpoint, server.metrics_endpoint, server.dashboard_endpoint)
            try:
                server.wait()
            finally:
                stops.ignore_signals()
    except stops.StopRequested:
        return 0
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
