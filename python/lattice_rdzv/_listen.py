"""Binds the socket on which this node serves if it becomes the master, before its port is published.

Problem: another program can take a port between its selection and a later bind. Design: the node binds and listens
first, publishes the port in its record, and passes this socket to the server. Early clients wait in the socket's queue.
"""

from __future__ import annotations

import errno
import socket

# The kernel limits this to `net.core.somaxconn`. Every worker of a run may connect before the first accept.
_BACKLOG = 4096


def listen(port: int | None, port_range: tuple[int, int] | None) -> socket.socket:
    """Binds a socket and listens on it, for IPv4 and IPv6 if the machine has both.

    Args:
        port: The port to bind. Default: a port of `port_range`, or a port that the system selects.
        port_range: First and last port to try.

    Raises:
        OSError: None of the ports could be bound.
    """
    if port is not None:
        candidates = range(port, port + 1)
    elif port_range is not None:
        candidates = range(port_range[0], port_range[1] + 1)
    else:
        candidates = range(1)
    for candidate in candidates:
        listener = _try_to_listen(candidate)
        if listener is not None:
            return listener
    which = f"port {candidates[0]}" if len(candidates) == 1 else f"one of the ports {candidates[0]}-{candidates[-1]}"
    what = "it is" if len(candidates) == 1 else "all of them are"
    raise OSError(
        errno.EADDRINUSE,
        f"this node cannot serve on {which}, because {what} in use or not allowed; end the process that uses it (see "
        "`ss -ltnp`), or change `port` or `port_range`",
    )


def _try_to_listen(port: int) -> socket.socket | None:
    try:
        return _listen(port)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            # The kernel supports IPv6, but it is disabled on this machine.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), family=socket.AF_INET, backlog=_BACKLOG)
