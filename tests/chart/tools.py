"""Which programs the chart is tested with on this machine. `scripts/chart-tools` gets them.

Where one is lacking, the tests that need it are skipped and say which; with `LATTICE_CHART_TOOLS=required`, as in
continuous integration, they fail instead.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "lattice-rdzv"

HELM_VERSIONS = ("3.8.2", "3.22.0", "4.3.1")
NEWEST_HELM = HELM_VERSIONS[-1]
# The default image's, the newest of each line, and Debian's 3.4.
ETCD_VERSIONS = ("3.4", "3.5.5", "3.5.35", "3.6.16", "3.7.3")
KUBERNETES_VERSIONS = ("1.18", "1.21", "1.27", "1.30", "1.37")


def _folder() -> Path:
    printed = subprocess.run([ROOT / "scripts" / "chart-tools", "--folder"], capture_output=True, text=True, check=True)
    return Path(printed.stdout.strip())


FOLDER = _folder()


def lack(what: str) -> None:
    """Skips this test, or fails it where everything has to be there."""
    message = f"lacking here: {what} (scripts/chart-tools gets it; most needs Go)"
    if os.environ.get("LATTICE_CHART_TOOLS") == "required":
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str) -> Path:
    """The file or folder of that name, for example `helm-4.3.1/helm`."""
    path = FOLDER / name
    if not path.exists():
        lack(name.split("/")[0])
    return path


def helm(version: str = NEWEST_HELM) -> Path:
    """The binary of one release of Helm."""
    return tool(f"helm-{version}/helm")


def schemas(version: str) -> Path:
    """The strict schemas of one release of Kubernetes."""
    for folder in sorted(FOLDER.glob("schemas-*")):
        if (folder / version).is_dir():
            return folder / version
    lack(f"schemas of Kubernetes {version}")
    raise AssertionError("unreachable")
