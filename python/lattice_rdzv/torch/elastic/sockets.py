"""The TCP sockets of one process group, and how to break them.

Problem: gloo has no function that ends a pending collective. A rank that waits for data of a rank that is alive waits for
the group's timeout, although the group is broken. Design: when a connection is shut down, the calls that wait for its data
end within milliseconds. The connections of a group are those that appeared while the group was formed. Programs that the
process starts inherit gloo's sockets, but not those of Python and of the core, which distinguishes them.

Another thread may close a descriptor at any time, and the number may then belong to another file. Every action therefore
uses a duplicate of the descriptor, and compares the inode of the duplicate first. Only the close-on-exec flag cannot be set
through a duplicate.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


class GroupSockets:
    """The connections that appear between the creation of this object and `freeze`."""

    def __init__(self) -> None:
        # By inode: a descriptor number is reused, the inode of an open socket is not.
        self._earlier = {inode for _, inode in _sockets()}
        self._found: dict[int, int] = {}
        self._frozen = False
        _groups.add(self)

    def find(self) -> int:
        """Records the connections that have appeared, and returns how many of them are open."""
        recorded = self._found
        self._found = {
            inode: descriptor
            for descriptor, inode in _sockets()
            if inode in recorded
            or (not self._frozen and inode not in self._earlier and _is_inherited_connection(descriptor))
        }
        for inode in self._found.keys() - recorded.keys():
            descriptor = self._found[inode]
            # A program that this process starts must not keep the connections of a dead process open. The flag belongs to
            # the descriptor itself, which another thread may close even now.
            with _duplicate(descriptor, inode) as found, suppress(OSError):
                if found is not None:
                    fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        return len(self._found)

    def freeze(self) -> None:
        """Records the connections for the last time: the group is complete, and later ones are those of the program."""
        self.find()
        self._frozen = True

    def shut_down(self) -> int:
        """Shuts down the connections, and returns how many. Until `freeze`, these include those since the last `find`."""
        self.find()
        count = 0
        for inode, descriptor in self._found.items():
            with _duplicate(descriptor, inode) as found:
                if found is not None:
                    # The peer may have closed the connection.
                    with suppress(OSError):
                        found.shutdown(socket.SHUT_RDWR)
                        count += 1
        return count

    def forget(self) -> None:
        """Releases the descriptors: the group has ended."""
        self._found = {}
        _groups.discard(self)

    def close_in_child(self) -> None:
        """Closes the copies of a forked child, such as a data loader, which would keep the connections of a dead parent
        open."""
        for inode, descriptor in self._found.items():
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    os.close(descriptor)
        self._found = {}


_groups: weakref.WeakSet[GroupSockets] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for group in list(_groups):
        group.close_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _duplicate:  # noqa: N801
    """A context with a duplicate of a socket, or `None` if the descriptor has another inode by now."""

    def __init__(self, descriptor: int, inode: int) -> None:
        self._descriptor = descriptor
        self._inode = inode
        self._socket: socket.socket | None = None

    def __enter__(self) -> socket.socket | None:
        try:
            duplicate = os.dup(self._descriptor)
        except OSError:
            return None
        status = os.fstat(duplicate)
        if not stat.S_ISSOCK(status.st_mode) or status.st_ino != self._inode:
            os.close(duplicate)
            return None
        self._socket = socket.socket(fileno=duplicate)
        return self._socket

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()


def _sockets() -> Iterator[tuple[int, int]]:
    """Yields descriptor and inode of each open socket of this process."""
    for entry in _DESCRIPTORS.iterdir():
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:["):
                yield int(entry.name), int(target[8:-1])


def _is_inherited_connection(descriptor: int) -> bool:
    """Returns whether this is a TCP connection that programs started by this process would inherit."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return False
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return False
    with found:
        if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
            return False
        try:
            found.getpeername()
        except OSError:
            return False
        return True
