"""Renders an example as `kubectl apply -k` does."""

import subprocess
from functools import cache
from pathlib import Path

from chart.render import Object, parse
from chart.tools import ROOT, tool

EXAMPLES = ROOT / "examples"
# Parts of other examples: the script that they run, and a change for OpenShift.
PARTS = {"train", "openshift"}
FOLDERS = sorted({file.parent.name for file in EXAMPLES.glob("*/kustomization.yaml")} - PARTS)


@cache
def _text(folder: Path) -> str:
    kubectl = tool("kubectl-1.37.1/kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(folder: Path | str) -> list[Object]:
    """Returns the objects of an example or of a folder."""
    return parse(_text(EXAMPLES / folder))


def one_of(folder: Path | str, kind: str) -> Object:
    """Returns the only object of a kind."""
    found = [one for one in objects(folder) if one["kind"] == kind]
    assert len(found) == 1, f"{kind} in {folder}: {len(found)}"
    return found[0]


def pod_specs(node: object) -> list[Object]:
    """Returns the specifications of the pods in an object of any kind."""
    if isinstance(node, list):
        return [spec for one in node for spec in pod_specs(one)]
    if not isinstance(node, dict):
        return []
    below = [spec for one in node.values() for spec in pod_specs(one)]
    return [node, *below] if "containers" in node else below
