"""`lattice-rdzv serve` runs the embedded server. It keeps its data in memory and ends with this command."""

import argparse
import resource
import signal
import sys
from types import FrameType

from lattice_rdzv._serve import DEFAULT_HOST, DEFAULT_PORT, serve
from lattice_rdzv.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `serve`."""
    parser.add_argument(
        "--listen",
        type=address,
        default=(DEFAULT_HOST, DEFAULT_PORT),
        metavar="HOST:PORT",
        help=f"address to listen on; port 0 selects a free port (default: {DEFAULT_HOST}:{DEFAULT_PORT})",
    )
    parser.add_argument(
        "--listen-metrics",
        type=address_with_port,
        metavar="HOST:PORT",
        help="also serve /metrics, /livez and /readyz there, over plain HTTP, without a certificate or a password",
    )
    parser.add_argument("--cert", metavar="FILE", help="certificate file; enables TLS")
    parser.add_argument("--key", metavar="FILE", help="file with the private key of the certificate")
    parser.add_argument("--client-ca", metavar="FILE", help="CA file; requires a client certificate of this CA")
    parser.add_argument("--user", metavar="NAME", help="user name; requires clients to log in as this user")
    parser.add_argument("--password-file", metavar="FILE", help="file with the password of that user")


def address(text: str) -> tuple[str, int]:
    """Parses `host:port`, `host`, `:port` or `[::1]:port`. Pure."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected `host:port`, for example `127.0.0.1:{DEFAULT_PORT}`: {text}")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


def address_with_port(text: str) -> tuple[str, int]:
    """An address whose port is named, because clients have the default one. Pure."""
    if ":" not in text or text.endswith("]"):
        raise argparse.ArgumentTypeError(f"expected `host:port` or `:port`, for example `127.0.0.1:29401`: {text}")
    return address(text)


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


class _StopRequested(BaseException):
    """A signal requested a stop."""


def _request_stop(number: int, _frame: FrameType | None) -> None:
    raise _StopRequested(signal.Signals(number).name)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT and returns 0, or returns 1 if the server cannot start."""
    host, port = arguments.listen
    raise_open_files()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _request_stop)
        with serve(
            host,
            port,
            cert=arguments.cert,
            key=arguments.key,
            client_ca=arguments.client_ca,
            user=arguments.user,
            password_file=arguments.password_file,
            metrics=arguments.listen_metrics,
        ) as server:
            # The only lines on stdout: a caller that passed port 0 reads the port from them. The log goes to stderr.
            print(server.endpoint, flush=True)
            if server.metrics_endpoint is not None:
                print(server.metrics_endpoint, flush=True)
            try:
                server.wait()
            finally:
                # A second signal must not interrupt the stop.
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
    except _StopRequested:
        return 0
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
