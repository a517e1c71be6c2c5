"""What nodes meet on, as a process of its own on a free port, and the faults that it is put through: killed, paused, wiped.

There are two, and a test of the torch plugin runs on each: a real etcd (`etcd.py`) and the embedded store of this project
(`embedded.py`). What they hold is read and written with etcd's own `etcdctl`, which is not the client under test.
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

# For a test of what only an etcd does, with the reason beside it; every other one runs on both.
on_etcd = pytest.mark.parametrize("kind", ["etcd"])


class Service(ABC):
    """One server. It keeps its address and flags through every fault."""

    def __init__(self, folder: Path, *, certificates: Certificates | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it at its port, with the certificates if there are any."""

    @abstractmethod
    def need_password(self, user: str, password: str) -> None:
        """From now on it serves this user alone, who may read and write `/lattice/`."""

    @property
    def endpoint(self) -> str:
        """What `--rdzv-endpoint` is given."""
        return self._url if self._certificates else f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self.folder / "service.log"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("the service answers", self._answers, detail=lambda: self.log.read_text()[-2000:])

    @contextmanager
    def running(self) -> Iterator[Service]:
        """Started, and killed in the end."""
        try:
            self.start()
            yield self
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: what an etcd held is on its disk, what the embedded store held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay and nothing answers."""
        assert self._process is not None
        pause(self._process)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Comes back empty."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def version(self) -> dict[str, str]:
        """What it says that it is."""
        return dict(json.loads(self._page("version")))

    def keys_under(self, prefix: str) -> list[str]:
        """The keys under a prefix."""
        return [base64.b64decode(pair["key"]).decode() for pair in self._pairs("--prefix", "--keys-only", prefix)]

    def nodes(self, run_id: str) -> list[str]:
        """The keys of a run's nodes, who are in it."""
        return self.keys_under(f"/lattice/rdzv/default/{run_id}/nodes/")

    def get(self, key: str) -> bytes | None:
        """What a key holds."""
        pairs = self._pairs(key)
        return base64.b64decode(pairs[0].get("value", "")) if pairs else None

    def put(self, key: str, value: bytes) -> None:
        """Writes a key."""
        self.etcdctl("put", key, given=value)

    def delete(self, prefix: str) -> None:
        """Deletes every key under a prefix."""
        self.etcdctl("del", "--prefix", prefix)

    def etcdctl(self, *arguments: str, given: bytes = b"") -> bytes:
        """Runs that command on it; what it wrote."""
        files: list[str] = []
        if self._certificates is not None:
            files += ["--cacert", str(self._certificates.authority)]
            files += ["--cert", str(self._certificates.client), "--key", str(self._certificates.client_key)]
        command = [str(etcd_binary("etcdctl")), "--endpoints", self._url, *files, *arguments]
        # Without the environment: a variable that says the same as a flag is an error to it.
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=30, env={})
        assert done.returncode == 0, f"`etcdctl {' '.join(arguments)}`: {done.stderr.decode(errors='replace')}"
        return done.stdout

    @property
    def _url(self) -> str:
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    def _pairs(self, *arguments: str) -> list[dict[str, Any]]:
        answer = json.loads(self.etcdctl("get", "--write-out=json", *arguments))
        return list(answer.get("kvs", []))

    def _page(self, path: str) -> bytes:
        context = None
        if self._certificates is not None:
            context = ssl.create_default_context(cafile=str(self._certificates.authority))
            context.load_cert_chain(self._certificates.client, self._certificates.client_key)
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=5, context=context) as answer:
            return bytes(answer.read())

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the service ended: {self.log.read_text()[-2000:]}"
        try:
            return bool(json.loads(self._page("health"))["health"] == "true")
        except (OSError, ValueError):
            return False
