"""Runs the sbatch file without Slurm: this `scontrol` prints the name of this machine, and this `srun` starts agents on it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.ports import free_port
from harness.wait import wait_for

from examples.pods import START_SECONDS, kill_tree, outside
from examples.render import EXAMPLES

SBATCH = EXAMPLES / "slurm" / "train.sbatch"
NODES = 2

SCONTROL = """\
#!/bin/sh
[ "$*" = "show hostnames localhost[1-2]" ] || exit 64
echo localhost
echo elsewhere
"""
# It waits for the end of all agents, and fails if one of them has failed.
SRUN = """\
#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq "$SLURM_JOB_NUM_NODES"); do
    LATTICE_RDZV_NODE_NAME=node-$node TRAIN_CHECKPOINT=$PWD/$node.pt "$@" >"$node.log" 2>&1 &
    started+=($!)
done
for one in "${started[@]}"; do wait "$one" || status=$?; done
exit "${status:-0}"
"""


@pytest.fixture
def allocation(tmp_path: Path, torch: None) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the batch script in an allocation of two nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = outside()
    process = subprocess.Popen(
        ["bash", SBATCH, "--steps", "30", "--step-seconds", "0"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={
            **environment,
            "PATH": f"{programs}:{environment['PATH']}",
            "TRAIN": str(EXAMPLES / "train" / "train.py"),
            "LATTICE_PORT": str(free_port()),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_JOB_NODELIST": "localhost[1-2]",
        },
    )
    yield process
    kill_tree(process)


@pytest.mark.timeout(300)
def test_its_agents_rendezvous_on_the_first_nodes_server(allocation: subprocess.Popen[bytes], tmp_path: Path) -> None:
    def logs() -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(tmp_path.glob("*.log")))

    wait_for("the batch ends", lambda: allocation.poll() is not None, timeout_seconds=2 * START_SECONDS, detail=logs)
    assert allocation.returncode == 0, logs()
    assert set(re.findall(r"rank (\d) of 2 on \S+: done after step 30", logs())) == {"0", "1"}
    assert "this node hosts the rendezvous service" in logs(), logs()
