"""Small programs in separate Python processes, because a test cannot exit, fork or interrupt its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from harness.pythons import PACKAGES

# Begins a program whose nodes must have left when it ends, even if the service does not respond for some seconds.
PATIENT_EXIT = "from lattice_rdzv import _process; _process.LEAVE_AT_EXIT_SECONDS = 30"


class Program:
    """A running Python program whose output goes to a file."""

    def __init__(
        self,
        folder: Path,
        source: str,
        *,
        python: str = sys.executable,
        stdin: int = subprocess.DEVNULL,
        **environment: str,
    ) -> None:
        self._out = folder / f"program-{len(list(folder.glob('program-*')))}.out"
        if python != sys.executable:
            environment["PYTHONPATH"] = str(PACKAGES)
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [python, "-W", "error", "-c", textwrap.dedent(source)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=stdin,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )

    @property
    def output(self) -> str:
        """The output so far."""
        return self._out.read_text(errors="replace")

    def wait(self, timeout_seconds: float = 30.0) -> int:
        """Waits for its end and returns its status."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the program did not end within {timeout_seconds:g} s:\n{self.output}") from None
