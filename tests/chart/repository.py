"""The packaged chart with its index on a plain web server, and an OCI registry for it."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.ports import free_port
from harness.wait import wait_for

from chart.tools import ROOT, helm, tool

SOURCE = "https://example.com/lattice-rendezvous"


def package(folder: Path, source: str = SOURCE) -> subprocess.CompletedProcess[str]:
    """Runs the script that packages the chart and writes the index, as `make chart` does."""
    return subprocess.run(
        [ROOT / "scripts" / "chart-package", helm(), folder],
        env={**os.environ, "SOURCE": source},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder, and yields its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def registry_in_memory() -> Iterator[str]:
    """Runs an OCI registry without TLS, and yields its address."""
    address = f"localhost:{free_port()}"
    process = subprocess.Popen([tool("registry/registry"), address], stderr=subprocess.DEVNULL)

    def responds() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        wait_for("the registry responds", responds)
        yield address
    finally:
        process.kill()
        process.wait()
