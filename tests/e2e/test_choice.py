"""Which cluster is taken, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import Given, NoCluster, choose

VARIABLES = ("KUBECONFIG", "LATTICE_E2E_IMAGE", "LATTICE_CLUSTER_SCRIPT")


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has neither a cluster nor a program; the folder is its PATH."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_somebodys_own_comes_first(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("kubectl", "kind", "docker"):
        (nothing / program).touch(mode=0o755)
    monkeypatch.setenv("KUBECONFIG", str(nothing / "config"))
    monkeypatch.setenv("LATTICE_E2E_IMAGE", "registry.example.com:5000/agent:1")
    with choose(nothing) as (cluster, _):
        assert isinstance(cluster, Given)
        assert cluster.agent_image == "registry.example.com:5000/agent:1"
        assert cluster.no_faults


def test_without_any_each_lack_is_named(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoCluster) as caught, choose(nothing):
        pass
    said = str(caught.value)
    wanted = [
        "KUBECONFIG is not set",
        "kind is not on the PATH",
        "there is no docker",
        "LATTICE_CLUSTER_SCRIPT is not set",
    ]
    assert [one for one in wanted if one not in said] == []
    monkeypatch.setenv("KUBECONFIG", str(nothing / "config"))
    with pytest.raises(NoCluster, match="LATTICE_E2E_IMAGE names no image") as caught, choose(nothing):
        pass
    assert "KUBECONFIG is not set" not in str(caught.value)
