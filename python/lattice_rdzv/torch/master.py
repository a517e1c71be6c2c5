"""The workers' TCPStore of a round, served by the agent of rank 0 on a socket that was bound before the round.

Problem: the workers need a new TCPStore in each round, at an address that all nodes receive together with their ranks.
Design: each node binds a socket and listens when it requests a round, and publishes the port. The node that becomes rank 0 passes
its socket to torch. The previous server runs until the next one exists, because workers of the previous round may still
be stopping. A fixed port (`port`) is known without a socket, so only the agent of rank 0 binds it, and several agents of
one machine can use one port.
"""

from __future__ import annotations

import logging
import os
import resource
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lattice_rdzv import _core, _listen
from lattice_rdzv._membership import Membership

if TYPE_CHECKING:
    # torch exports this name at run time, but not in its types.
    from torch._C._distributed_c10d import TCPStore
else:
    from torch.distributed import TCPStore

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

# Open descriptors of an agent in addition to its workers' connections: logs, pipes, libraries.
_OTHER_DESCRIPTORS = 256
_TIMEOUT = timedelta(seconds=60)


class Master:
    """The server of the current round, on the socket that the membership offered for it."""

    def __init__(self, settings: _core.Settings, membership: Membership) -> None:
        self._settings = settings
        self._membership = membership
        self._server: TCPStore | None = None

    def listen(self) -> int:
        """Returns the port of the next round's store. Unless the port is fixed, binds the socket first if necessary.

        Raises:
            OSError: No port could be bound.
        """
        try:
            return self._membership.offer_port()
        except OSError:
            if self._server is None:
                raise
        # The previous round's server uses the only allowed port. This node's workers have stopped by now.
        self._server = None
        return self._membership.offer_port()

    def serve(self, world: _core.World) -> None:
        """Serves the workers of this world until the next one, on the socket bound before or at the fixed port.

        Raises:
            RuntimeError: torch could not serve on the port, or the port differs from the one in the world.
            OSError: The fixed port could not be bound.
        """
        listener = self._membership.take_listener()
        if listener is None and self._settings.port is not None:
            # The previous round's server may use the port. This node's workers have stopped by now.
            self._server = None
            listener = _listen.listen(self._settings.port, None)
        if listener is None:
            raise RuntimeError("the socket must be bound before the world is known")
        port = int(listener.getsockname()[1])
        if port != world.master_port:
            listener.close()
            raise RuntimeError(f"this agent's socket listens on another port: {port}")
        # Rank 0 learns the number of workers of each node only if the numbers can differ.
        identical = os.environ.get("TORCH_ELASTIC_WORKER_IDENTICAL", "0") == "1"
        allow_open_files(None if identical else world.size)
        # torch closes the descriptor.
        descriptor = listener.detach()
        ours = _identity(descriptor)
        try:
            self._server = _serve_on(port, descriptor)
        except BaseException:
            # If torch failed early, the descriptor is still open. Otherwise another thread may have reused the number.
            if _identity(descriptor) == ours:
                os.close(descriptor)
            raise
        if self._server.port != port:
            served, self._server = self._server.port, None
            raise RuntimeError(f"torch serves on another port: {served}")

    def release(self) -> None:
        """Releases the socket, so that a worker can bind its port or because this node is not rank 0, and stops the server
        of the previous round."""
        self._membership.release_port()
        self._server = None


def _serve_on(port: int, descriptor: int) -> TCPStore:
    options: dict[str, Any] = {
        # The IPv4 loopback also reaches a dual-stack socket, and needs no route to the address that peers use.
        "host_name": "127.0.0.1",
        "port": port,
        "is_master": True,
        "timeout": _TIMEOUT,
        "wait_for_workers": False,
        "master_listen_fd": descriptor,
    }
    try:
        return TCPStore(**options)
    except RuntimeError as error:
        # The libuv server of torch 2.6 does not accept a bound socket. It raises before it uses the socket.
        if "libuv" not in str(error):
            raise
        return TCPStore(**options, use_libuv=False)


def allow_open_files(connections: int | None) -> None:
    """Raises this process's soft limit of open files for this number of connections, up to the hard limit. If the number
    is not known, raises it to the hard limit.

    Workers inherit the limit, so it is raised only if it is not sufficient.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = hard if connections is None else connections + _OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft == needed or (connections is not None and soft >= needed):
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError) as error:
        logger.warning("cannot raise this agent's limit of open files from %d to %d: %s", soft, allowed, error)
        return
    if connections is not None and allowed < needed:
        logger.warning(
            "this agent serves the workers' store and may need %d open files; raise the hard limit (`ulimit -Hn`), "
            "which is %d",
            needed,
            hard,
        )


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
