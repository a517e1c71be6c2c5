"""`lattice-rdzv serve`: the embedded store, where there is no etcd. It lives in memory and ends with this command."""

import argparse
import resource
import signal
import sys
from types import FrameType

from lattice_rdzv._serve import DEFAULT_HOST, DEFAULT_PORT, serve
from lattice_rdzv.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, and for whom."""
    parser.add_argument(
        "--listen",
        type=address,
        default=(DEFAULT_HOST, DEFAULT_PORT),
        metavar="HOST:PORT",
        help=f"the address to listen on, and no other; port 0 is a free one ({DEFAULT_HOST}:{DEFAULT_PORT})",
    )
    parser.add_argument("--cert", metavar="FILE", help="speak TLS with this certificate")
    parser.add_argument("--key", metavar="FILE", help="the certificate's key")
    parser.add_argument("--client-ca", metavar="FILE", help="clients must have a certificate of this authority")
    parser.add_argument("--user", metavar="NAME", help="clients must say this user's password")
    parser.add_argument("--password-file", metavar="FILE", help="the file with that password")


def address(text: str) -> tuple[str, int]:
    """`host:port`, `host`, `:port` or `[::1]:port` as host and port. Pure."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected `host:port`, for example `127.0.0.1:{DEFAULT_PORT}`: {text}")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


def raise_open_files() -> None:
    """Lets this process open as many files as its user may: each connection is one, and many systems begin with 1,024.

    Only this command does it. A process that hosts the server for a job keeps its limit, because its workers inherit it
    and programs that use `select` fail with more than 1,024 files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        print(f"the limit of open files stays as it is: {error}", file=sys.stderr)


class _Told(BaseException):
    """A signal says that it is time to stop."""


def _tell(number: int, _frame: FrameType | None) -> None:
    raise _Told(signal.Signals(number).name)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; 0 then, 1 if it cannot serve."""
    host, port = arguments.listen
    raise_open_files()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _tell)
        with serve(
            host,
            port,
            cert=arguments.cert,
            key=arguments.key,
            client_ca=arguments.client_ca,
            user=arguments.user,
            password_file=arguments.password_file,
        ) as server:
            # For whoever started it with port 0; what happens is in the log, on stderr.
            print(server.endpoint, flush=True)
            try:
                server.wait()
            finally:
                # A second signal may not end the stop half-way.
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
    except _Told:
        return 0
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
