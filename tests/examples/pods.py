"""Runs pods of a rendered example as processes of this machine, with their own command, arguments and variables.

There is no cluster and no image. The name of the pod replaces its host name, folders replace its volumes, and loopback replaces
its network. The paths of volumes are replaced in the arguments and variables of the container.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from chart.render import Object
from harness.wait import wait_for

from examples.render import one_of, pod_specs

# The time to import torch in every agent and worker, on two cores that other programs use as well.
START_SECONDS = 120.0


class Pod:
    """One pod. Its volumes are in a folder of this pod only, so another pod of this name starts with empty volumes."""

    def __init__(
        self, folder: Path, example: str, kind: str, name: str, labels: Mapping[str, str], given: Mapping[str, str]
    ) -> None:
        self.name = name
        self._labels = labels
        self._folder = folder
        [self._spec] = pod_specs(one_of(example, kind))
        [agent] = self._spec["containers"]
        self._paths = {mount["mountPath"]: self._volume(mount["name"], example) for mount in agent["volumeMounts"]}
        environment = {one["name"]: self._value(one) for one in agent["env"]}
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [self._placed(argument) for argument in (*agent["command"], *agent["args"])],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**outside(), "TMPDIR": str(folder), **environment, "LATTICE_RDZV_NODE_NAME": name, **given},
            )

    @property
    def log(self) -> str:
        """The output of the agent and its worker."""
        return self._log.read_text(errors="replace")

    def wait_log(self, pattern: str) -> re.Match[str]:
        """Waits until the output matches a pattern."""

        def written() -> re.Match[str] | None:
            found = re.search(pattern, self.log)
            assert found or self.process.poll() is None, f"{self.name} has ended:\n{self.log[-4000:]}"
            return found

        return wait_for(
            f"{self.name} writes `{pattern}`", written, timeout_seconds=START_SECONDS, detail=lambda: self.log[-4000:]
        )

    def wait(self) -> int:
        """Waits for the end of the agent and returns its exit status."""
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """Sends SIGKILL to all processes of the pod, as if its machine were lost."""
        kill_tree(self.process)

    def _volume(self, name: str, example: str) -> Path:
        [volume] = [one for one in self._spec["volumes"] if one["name"] == name]
        folder = self._folder / name
        folder.mkdir(parents=True)
        if "configMap" in volume:
            for key, text in one_of(example, "ConfigMap")["data"].items():
                (folder / key).write_text(text)
        return folder

    def _placed(self, text: str) -> str:
        """Replaces the paths of volumes, which must begin a word, by the folders of this pod."""
        inside = "|".join(map(re.escape, self._paths))
        return re.sub(rf"(?<!\S)({inside})(?=/)", lambda found: str(self._paths[found[1]]), text)

    def _value(self, one: Object) -> str:
        if "value" in one:
            return self._placed(one["value"])
        path = one["valueFrom"]["fieldRef"]["fieldPath"]
        if path == "status.podIP":
            return "127.0.0.1"
        if path == "metadata.namespace":
            return "lattice"
        label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
        assert label, path
        return self._labels[label[1]]


def outside() -> dict[str, str]:
    """Returns the variables of this machine without those that a job reads, and with the programs of this Python on the PATH."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LATTICE_", "TORCHELASTIC_", "PET_", "POD_IP", "SLURM_"))
    }
    return {**inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a process and its descendants. A signal to the group is not enough, because workers have own sessions."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Returns the descendants of a process."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []
    return [below for child in children for below in (child, *descendants(child))]
