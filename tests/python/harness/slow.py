"""A slow connection to a service, and an etcd without a quorum."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.binaries import etcd_binary
from harness.ports import free_port
from harness.wait import wait_for


class SlowLink:
    """A proxy to a port of this machine that delays each piece of data by `seconds`."""

    def __init__(self, target: int) -> None:
        self.seconds = 0.0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                # The delay is the fault that this proxy injects, not a wait of a test.
                time.sleep(self.seconds)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # The other direction closes `target`.
        source.close()


@contextmanager
def etcd_without_quorum(folder: Path) -> Iterator[str]:
    """Runs a cluster of two etcd members and kills one of them, so that the other one has no leader."""
    ports = [(free_port(), free_port()) for _ in range(2)]
    cluster = ",".join(f"etcd{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports))
    members: list[subprocess.Popen[bytes]] = []
    for number, (port, peer) in enumerate(ports):
        flags = [
            f"--name=etcd{number}", f"--data-dir={folder / str(number)}",
            f"--listen-client-urls=http://127.0.0.1:{port}", f"--advertise-client-urls=http://127.0.0.1:{port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster={cluster}",
        ]  # fmt: skip
        with (folder / f"{number}.log").open("wb") as log:
            line = [str(etcd_binary()), *flags]
            members.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    endpoint = f"127.0.0.1:{ports[0][0]}"
    health = [str(etcd_binary("etcdctl")), f"--endpoints={endpoint}", "endpoint", "health"]

    def is_healthy() -> bool:
        return subprocess.run(health, check=False, capture_output=True, env={}).returncode == 0

    try:
        wait_for("the cluster has a leader", is_healthy)
        members[1].kill()
        members[1].wait()
        wait_for("the cluster has no leader", lambda: not is_healthy())
        yield endpoint
    finally:
        for member in members:
            member.kill()
            member.wait()
