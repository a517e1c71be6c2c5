"""Runs a temporary etcd with one member on this machine, for the demo and for benchmarks."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.02


class LocalEtcdError(Exception):
    """The local etcd did not start."""


@contextmanager
def serving_etcd(binary: Path, folder: Path) -> Iterator[str]:
    """Runs an etcd with one member on free ports and yields its client endpoint."""
    client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [
        str(binary),
        *("--name", "local", "--data-dir", str(folder / "etcd")),
        *("--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}"),
        *("--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}"),
        *("--initial-cluster", f"local=http://{peer}"),
    ]
    log_path = folder / "etcd.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while not is_healthy(client):
            if process.poll() is not None or time.monotonic() > deadline:
                raise LocalEtcdError(f"etcd did not start: {log_path.read_text(errors='replace')[-2000:]}")
            time.sleep(POLL_SECONDS)
        yield client
    finally:
        process.kill()
        process.wait()


def is_healthy(endpoint: str) -> bool:
    """Returns whether etcd reports that it is healthy."""
    try:
        # Bypass a proxy of the environment, because the endpoint is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{endpoint}/health", timeout=1) as answer:
            return str(json.load(answer).get("health")) == "true"
    except (urllib.error.URLError, OSError, ValueError):
        return False


def free_ports(count: int) -> list[int]:
    """Returns ports that are currently free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
