"""Runs the README's first job: two agents on one machine, in one folder, without an etcd."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.ports import free_port

from examples.pods import START_SECONDS, kill_tree, outside
from examples.render import EXAMPLES

ROOT = EXAMPLES.parent


@pytest.mark.timeout(300)
def test_two_agents_in_one_folder_train_to_the_end(tmp_path: Path, torch: None) -> None:
    (line,) = re.findall(r"^torchrun (.* localhost:29400 .*train\.py)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = line.replace(":29400", f":{free_port()}").replace("examples/", f"{EXAMPLES}/").split()
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = {**outside(), "TRAIN_STEP_SECONDS": "0"}
    agents: list[subprocess.Popen[bytes]] = []
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    try:
        for path in logs:
            with path.open("wb") as log:
                agents.append(
                    subprocess.Popen(
                        command,
                        cwd=tmp_path,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        statuses = [agent.wait(2 * START_SECONDS) for agent in agents]
    finally:
        for agent in agents:
            kill_tree(agent)
    output = "\n".join(path.read_text(errors="replace") for path in logs)
    assert statuses == [0, 0], output
    assert set(re.findall(r"rank (\d) of 2 on \S+: done after step 200", output)) == {"0", "1"}, output
    assert (tmp_path / "checkpoint.pt").exists()
    assert not list(tmp_path.glob("*.part"))
