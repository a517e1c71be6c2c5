"""Pods of a rendered example as processes of this machine: their own command, arguments and variables.

What stands in for Kubernetes: a pod's name for its host name, folders for its volumes (their paths are replaced in what
the container is given), loopback for its network. There is no cluster and no image here.
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

# Importing torch in every agent and worker, on two cores that others use as well.
START_SECONDS = 120.0


class Pod:
    """One pod. Its folder goes with it, so another one of that name begins with nothing."""

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
        """What the agent and its worker wrote."""
        return self._log.read_text(errors="replace")

    def wait_log(self, pattern: str) -> re.Match[str]:
        """Waits until it has written something."""

        def written() -> re.Match[str] | None:
            found = re.search(pattern, self.log)
            assert found or self.process.poll() is None, f"{self.name} has ended:\n{self.log[-4000:]}"
            return found

        return wait_for(
            f"{self.name} writes `{pattern}`", written, timeout_seconds=START_SECONDS, detail=lambda: self.log[-4000:]
        )

    def wait(self) -> int:
        """Its exit status."""
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """SIGKILL to all that it is, as the loss of its machine."""
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
        """Paths in it, which begin a word, are those of the volumes here."""
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
    """The variables of this machine, without any that a job reads, and with the programs of this Python."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LATTICE_", "TORCHELASTIC_", "PET_", "POD_IP", "SLURM_"))
    }
    return {**inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all below it: workers have sessions of their own."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []
    return [below for child in children for below in (child, *descendants(child))]
