"""Ports that nobody listens on just now."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST = 20_000
_COUNT = 10_000
# Times a prime, so that processes which run at once begin far from each other.
_steps = itertools.count(os.getpid() * 7_919)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that was given to no other test of this process.

    It lies below those that the kernel picks from by itself (`ip_local_port_range`, ip(7)). One of those can be given a
    second time, or be a connection's, before it is listened on, and while the server that had it is down.
    """
    while True:
        port = _FIRST + next(_steps) % _COUNT
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
