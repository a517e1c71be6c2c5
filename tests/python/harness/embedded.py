"""The embedded server, run by `lattice-rdzv serve`. It keeps its data in memory, so a kill loses it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.certificates import Certificates
from harness.service import Service


class Embedded(Service):
    """One embedded server."""

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
        self.change_password(user, password)
        self._password = [f"--user={user}", f"--password-file={self._password_file}"]
        self.kill()
        self.start()

    def change_password(self, user: str, password: str) -> None:
        self._password_file.write_text(f"{password}\n")

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"
