"""Starts a process of a job, without the settings that this process may have inherited from another job."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_OF_A_JOB = ("LATTICE_", "LOCAL_", "TORCHELASTIC_", "PET_", "POD_IP", "JOB_COMPLETION_INDEX", "SLURM_NODEID")


def start(command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the process in a separate session, with its output in the file."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OF_A_JOB)}
    with log_file.open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        )
