"""Options of the commands that listen on an address, and what they print."""

import argparse
import ipaddress
from functools import partial
from urllib.parse import urlsplit

from lattice_rdzv._serve import DEFAULT_HOST, DEFAULT_PORT


def add_arguments(parser: argparse.ArgumentParser, default_port: int, *, clients: str) -> None:
    """Adds `--listen`, `--listen-metrics`, and the certificate and the login that `clients` see."""
    parser.add_argument(
        "--listen",
        type=partial(address, default_port=default_port),
        default=(DEFAULT_HOST, default_port),
        metavar="HOST:PORT",
        help=f"address to listen on; port 0 selects a free port (default: {DEFAULT_HOST}:{default_port})",
    )
    parser.add_argument(
        "--listen-metrics",
        type=address_with_port,
        metavar="HOST:PORT",
        help="also serve /metrics, /livez and /readyz there, over plain HTTP, without a certificate or a password",
    )
    parser.add_argument("--cert", metavar="FILE", help="certificate file; enables TLS")
    parser.add_argument("--key", metavar="FILE", help="file with the private key of the certificate")
    parser.add_argument("--user", metavar="NAME", help=f"user name; requires {clients} to log in as this user")
    parser.add_argument("--password-file", metavar="FILE", help="file with the password of that user")


def address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Parses `host:port`, `host`, `:port` or `[::1]:port`. Pure."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default_port)
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected `host:port`, for example `127.0.0.1:{default_port}`: {text}")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


def address_with_port(text: str) -> tuple[str, int]:
    """An address whose port is named, because clients have the default one. Pure."""
    if ":" not in text or text.endswith("]"):
        raise argparse.ArgumentTypeError(f"expected `host:port` or `:port`, for example `127.0.0.1:29401`: {text}")
    return address(text)


def loopback_warning(host: str, endpoint: str) -> str | None:
    """Returns the warning that only this machine can connect, although the host was not named as a loopback address. Pure."""
    served = urlsplit(endpoint).hostname or ""
    if host in ("localhost", "*") or _is_address(host) or not ipaddress.ip_address(served).is_loopback:
        return None
    return (
        f"`{host}` is {served} on this machine, so other machines cannot connect; to serve them, pass the address of this "
        "machine, or `0.0.0.0` for all addresses"
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def print_endpoints(*endpoints: str | None) -> None:
    """Prints one endpoint in each line. These are the only lines on stdout, so that a caller that passed port 0 can read the
    ports. The log goes to stderr."""
    for endpoint in endpoints:
        if endpoint is not None:
            print(endpoint, flush=True)
