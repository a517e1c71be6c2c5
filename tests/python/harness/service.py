"""A rendezvous service as a separate process on a free port, and its faults: it can be killed, paused, or lose its data.

There are two kinds, and the tests of the torch plugin run with each: a real etcd (`etcd.py`) and the embedded server of this
project (`embedded.py`). The tests read and write keys with etcd's own `etcdctl`, because it is not the client under test.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import ssl
import subprocess
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.binaries import etcd_binary
from harness.certificates import Certificates
from harness.paused import pause
from harness.ports import free_port
from harness.wait import wait_for

# For a test that runs only with etcd, with the reason as a comment. Every other test runs with both services.
on_etcd = pytest.mark.parametrize("kind", ["etcd"])


class Service(ABC):
    """One server. Its address and flags do not change when it is restarted."""

    def __init__(self, folder: Path, *, certificates: Certificates | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Returns the command that starts the server at its port, with the certificates if there are any."""

    @abstractmethod
    def need_password(self, user: str, password: str) -> None:
        """Enables authentication. From then on, only this user may read and write `/lattice/`."""

    @abstractmethod
    def change_password(self, user: str, password: str) -> None:
        """Changes the password of the user, while the server runs."""

    @property
    def endpoint(self) -> str:
        """The value of `--rdzv-endpoint`."""
        return self._url if self._certificates else f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return self.folder / "service.log"

    def start(self) -> None:
        """Starts the server and waits until it responds."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(
            "the service responds", self._responds, timeout_seconds=90, detail=lambda: self.log.read_text()[-2000:]
        )

    @contextmanager
    def running(self) -> Iterator[Service]:
        """Runs the server for a context, and kills it at the end."""
        try:
            self.start()
            yield self
        finally:
            self.kill()

    def kill(self) -> None:
        """Sends SIGKILL. The data of an etcd remains on its disk, whereas the data of the embedded server is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Sends SIGSTOP. Connections remain, but the server does not respond."""
        assert self._process is not None
        pause(self._process)

    def resume(self) -> None:
        """Sends SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Restarts the server without its data."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def version(self) -> dict[str, str]:
        """Returns the versions that the server reports."""
        return dict(json.loads(self._page("version")))

    def keys_under(self, prefix: str) -> list[str]:
        """Returns the keys under a prefix."""
        return [base64.b64decode(pair["key"]).decode() for pair in self._pairs("--prefix", "--keys-only", prefix)]

    def nodes(self, run_id: str) -> list[str]:
        """Returns the keys of a run's nodes."""
        return self.keys_under(f"/lattice/rdzv/default/{run_id}/nodes/")

    def get(self, key: str) -> bytes | None:
        """Returns the value of a key, or `None`."""
        pairs = self._pairs(key)
        return base64.b64decode(pairs[0].get("value", "")) if pairs else None

    def put(self, key: str, value: bytes) -> None:
        """Writes a key."""
        self.etcdctl("put", key, given=value)

    def delete(self, prefix: str) -> None:
        """Deletes every key under a prefix."""
        self.etcdctl("del", "--prefix", prefix)

    def etcdctl(self, *arguments: str, given: bytes = b"") -> bytes:
        """Runs this command of etcdctl with the server, and returns its output."""
        files: list[str] = []
        if self._certificates is not None:
            files += ["--cacert", str(self._certificates.authority)]
            files += ["--cert", str(self._certificates.client), "--key", str(self._certificates.client_key)]
        limits = ["--command-timeout=60s", "--dial-timeout=60s"]
        command = [str(etcd_binary("etcdctl")), "--endpoints", self._url, *limits, *files, *arguments]
        # Without the environment, because etcdctl fails if both a variable and a flag set a value.
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=90, env={})
        assert done.returncode == 0, f"`etcdctl {' '.join(arguments)}`: {done.stderr.decode(errors='replace')}"
        return done.stdout

    @property
    def _url(self) -> str:
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    def _pairs(self, *arguments: str) -> list[dict[str, Any]]:
        response = json.loads(self.etcdctl("get", "--write-out=json", *arguments))
        return list(response.get("kvs", []))

    def _page(self, path: str) -> bytes:
        context = None
        if self._certificates is not None:
            context = ssl.create_default_context(cafile=str(self._certificates.authority))
            context.load_cert_chain(self._certificates.client, self._certificates.client_key)
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=30, context=context) as response:
            return bytes(response.read())

    def _responds(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the service ended: {self.log.read_text()[-2000:]}"
        try:
            return bool(json.loads(self._page("health"))["health"] == "true")
        except (OSError, ValueError):
            return False
