"""`lattice-rdzv dashboard` shows the runs of a tenant as a page in a browser."""

import argparse
import sys

from lattice_rdzv import _core, _process
from lattice_rdzv.errors import RendezvousError

from . import listen, service, stops

DEFAULT_PORT = 8089
EXAMPLES = """\
The page only reads. On an address that other machines reach, it requires --cert, --key, --user and --password-file.

examples:
  lattice-rdzv dashboard                                  the runs at the endpoint that an agent would use here
  lattice-rdzv dashboard --endpoint etcd-1:2379 --tenant vision
  lattice-rdzv dashboard --listen '*:8089' --host dash.example.com --cert tls.crt --key tls.key --user ops --password-file pw
  lattice-rdzv dashboard --listen-metrics '*:9090'        also /metrics, /livez and /readyz, without a login
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `dashboard`."""
    parser.add_argument("--tenant", default="", help="tenant of the runs (default: LATTICE_RDZV_TENANT, or `default`)")
    service.add_arguments(parser, prints_json=False)
    listen.add_arguments(parser, DEFAULT_PORT, clients="browsers")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name, without a port, under which browsers reach the page (default: the address of --listen, and "
        "localhost)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT and returns 0, or returns 1 or 2 if the dashboard cannot start."""
    host, port = arguments.listen
    _process.begin()
    try:
        with stops.raised():
            starting = _core.Dashboard.start(
                service.settings(arguments, tenant=arguments.tenant),
                host,
                port,
                hosts=arguments.host,
                cert=arguments.cert,
                key=arguments.key,
                user=arguments.user,
                password_file=arguments.password_file,
                metrics=arguments.listen_metrics,
                timeout_seconds=arguments.timeout,
            )
            dashboard = _process.serving(starting.wait())
            try:
                listen.print_endpoints(dashboard.endpoint, dashboard.metrics_endpoint)
                dashboard.wait().wait()
            finally:
                stops.ignore_signals()
                _process.stopped(dashboard)
                dashboard.stop().wait()
    except stops.StopRequested:
        return 0
    except RendezvousError as error:
        print(error, file=sys.stderr)
        return service.USAGE
    return 0
