"""Endpoints that are not etcd: a server that never responds, a TCPStore of torch, and a web server."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """Accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def tcp_store_endpoint(**options: Any) -> Iterator[str]:
    """Runs a `TCPStore` of torch, as jobs with the backend `c10d` and workers do, with either of its two servers."""
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, **options)
    yield f"127.0.0.1:{store.port}"


@contextmanager
def http_endpoint() -> Iterator[str]:
    """Runs an ordinary web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
