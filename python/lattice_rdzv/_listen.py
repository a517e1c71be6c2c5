"""The socket on which this node would serve as master, bound before anyone hears of its port.

Problem: a port that is picked now and bound later can be taken in between. Choice: bind and listen first, publish the
port with the node's record, and hand the very socket to whoever serves; clients that come early wait in its queue.
"""

from __future__ import annotations

import errno
import socket

# The kernel cuts this down to `net.core.somaxconn`; every worker of a run may knock before the first accept.
_BACKLOG = 4096


def listen(port: int | None, port_range: tuple[int, int] | None) -> socket.socket:
    """Binds and listens, for IPv4 and IPv6 alike where the machine has both.

    Args:
        port: The port to take. Default: one of `port_range`, else one that the system picks.
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
        f"this node cannot serve on {which}, because {what} in use or not allowed; end what holds it, as "
        "`ss -ltnp` shows, or change `port` or `port_range`",
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
            # IPv6 is compiled in but switched off on this machine.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), family=socket.AF_INET, backlog=_BACKLOG)
