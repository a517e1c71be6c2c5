"""The embedded store, as `lattice-rdzv serve` gives it: in memory, so that whoever kills it wipes it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.certificates import Certificates
from harness.service import Service


class Embedded(Service):
    """One such server."""

    def __init__(self, folder: Path, *, certificates: Certificates | None = None) -> None:
        super().__init__(folder, certificates=certificates)
        self._password: list[str] = []

    def command(self) -> list[str]:
        flags = [f"--listen=127.0.0.1:{self.port}", *self._password]
        if self._certificates is not None:
            flags += [
                f"--cert={self._certificates.server}",
                f"--key={self._certificates.server_key}",
                f"--client-ca={self._certificates.authority}",
            ]
        return [sys.executable, "-m", "lattice_rdzv.cli", "serve", *flags]

    def need_password(self, user: str, password: str) -> None:
        file = self.folder / "password"
        file.write_text(f"{password}\n")
        self._password = [f"--user={user}", f"--password-file={file}"]
        self.kill()
        self.start()
