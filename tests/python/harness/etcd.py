"""A real etcd of one member."""

from __future__ import annotations

import re
from pathlib import Path

from harness.binaries import etcd_binary
from harness.certificates import Certificates
from harness.ports import free_port
from harness.service import Service

_ROOT_PASSWORD = "of-the-administrator"


class Etcd(Service):
    """One etcd server."""

    def __init__(self, folder: Path, *, certificates: Certificates | None = None) -> None:
        super().__init__(folder, certificates=certificates)
        self._peer_port = free_port()

    def command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        flags = [
            f"--data-dir={self.folder / 'data'}",
            "--name=test",
            f"--listen-client-urls={self._url}",
            f"--advertise-client-urls={self._url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
            "--unsafe-no-fsync",
        ]
        if self._certificates is not None:
            flags += [
                f"--cert-file={self._certificates.server}",
                f"--key-file={self._certificates.server_key}",
                f"--trusted-ca-file={self._certificates.authority}",
                "--client-cert-auth",
            ]
        return [str(etcd_binary()), *flags]

    def watches(self) -> int:
        """Returns the number of its clients' watches."""
        metric = re.search(rb"^etcd_debugging_mvcc_watcher_total (\S+)$", self._page("metrics"), re.MULTILINE)
        assert metric is not None
        return int(float(metric[1]))

    def need_password(self, user: str, password: str) -> None:
        self.etcdctl("user", "add", f"root:{_ROOT_PASSWORD}")
        self.etcdctl("role", "add", "root")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("role", "add", "lattice")
        self.etcdctl("role", "grant-permission", "lattice", "readwrite", "/lattice/", "--prefix=true")
        self.etcdctl("user", "add", f"{user}:{password}")
        self.etcdctl("user", "grant-role", user, "lattice")
        self.etcdctl("auth", "enable")

    def change_password(self, user: str, password: str) -> None:
        arguments = ("--user", f"root:{_ROOT_PASSWORD}", "user", "passwd", user, "--interactive=false")
        self.etcdctl(*arguments, given=f"{password}\n".encode())
