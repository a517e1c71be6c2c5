"""The programs with which the chart is tested. `scripts/chart-tools` installs them.

If a program is missing, the tests that need it are skipped with a reason that names it. With `LATTICE_CHART_TOOLS=required`, as
in continuous integration, they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "lattice-rdzv"

HELM_VERSIONS = ("3.8.1", "3.22.0", "4.3.1")
NEWEST_HELM = HELM_VERSIONS[-1]
# The version of the default image, the newest of each release line, and Debian's 3.4.
ETCD_VERSIONS = ("3.4", "3.5.5", "3.5.35", "3.6.16", "3.7.3")
KUBERNETES_VERSIONS = ("1.18", "1.21", "1.27", "1.30", "1.37")


def _folder() -> Path:
    printed = subprocess.run([ROOT / "scripts" / "chart-tools", "--folder"], capture_output=True, text=True, check=True)
    return Path(printed.stdout.strip())


FOLDER = _folder()


def skip_without(what: str) -> None:
    """Skips this test because a requirement is missing, or fails it if all of them are required."""
    message = f"missing: {what} (scripts/chart-tools installs it; most tools need Go)"
    if os.environ.get("LATTICE_CHART_TOOLS") == "required":
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str) -> Path:
    """Returns the file or folder of this name, for example `helm-4.3.1/helm`."""
    path = FOLDER / name
    if not path.exists():
        skip_without(name.split("/")[0])
    return path


def program(name: str, package: str) -> str:
    """Returns the path of an installed program."""
    found = shutil.which(name)
    if found is None:
        skip_without(f"{name} (package {package})")
        raise AssertionError("unreachable")
    return found


def helm(version: str = NEWEST_HELM) -> Path:
    """Returns the binary of one release of Helm."""
    return tool(f"helm-{version}/helm")


def schemas(version: str) -> Path:
    """Returns the folder with the strict schemas of one release of Kubernetes, for kubeconform."""
    for folder in sorted(FOLDER.glob("kubernetes-schemas-*")):
        if (folder / version).is_dir():
            return folder / version
    skip_without(f"schemas of Kubernetes {version}")
    raise AssertionError("unreachable")
