"""Free ports."""

from __future__ import annotations

import errno
import itertools
import os
import socket

# Each worker of pytest-xdist has its own ports. They are below 29400 and 29500, which this project and torch use by default.
_COUNT = 2_000
_FIRST = 20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4 * _COUNT
# The pid is multiplied by a prime, so that processes which run at the same time begin far apart.
_steps = itertools.count(os.getpid() * 7_919)


def free_port() -> int:
    """Returns a free port of the loopback interface that no other test of this process has received.

    It is below the range from which the kernel assigns ports (`ip_local_port_range`, ip(7)). The kernel could assign a port of
    that range again, or use it for a connection, before the test listens on it or while the server of the test is down.
    """
    while True:
        port = _FIRST + next(_steps) % _COUNT
        with socket.socket() as probe:
            probe.settimeout(1)
            # A listener would not do: a program that another thread starts at this moment holds a copy of it until its exec(2).
            if probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                return port
