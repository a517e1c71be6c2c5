"""Which cluster is taken, without one: programs that do nothing, and clusters that are not made."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import Given, Kind, NoCluster, Scripted, choose

VARIABLES = ("KUBECONFIG", "LATTICE_E2E_IMAGE", "LATTICE_CLUSTER_SCRIPT")


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has neither a cluster nor a program; the folder is its PATH."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_somebodys_own_comes_first(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(nothing, "kubectl", "kind", "docker")
    monkeypatch.setenv("KUBECONFIG", f"{nothing}/one:{nothing}/other")
    monkeypatch.setenv("LATTICE_E2E_IMAGE", "registry.example.com:5000/agent:1")
    with choose(nothing) as (cluster, lacks):
        assert isinstance(cluster, Given)
        assert lacks == []
        assert cluster.agent_image == "registry.example.com:5000/agent:1"
        assert cluster.no_faults


def test_kind_comes_next_and_then_the_script(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (Kind, Scripted):
        monkeypatch.setattr(one, "create", lambda self: None)
        monkeypatch.setattr(one, "delete", lambda self: None)
    have(nothing, "kubectl", "kind", "docker")
    monkeypatch.setenv("LATTICE_CLUSTER_SCRIPT", str(nothing / "cluster"))
    monkeypatch.setenv("LATTICE_E2E_TORCH", str(nothing))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with choose(nothing) as (cluster, lacks):
        assert isinstance(cluster, Kind)
        assert len(lacks) == 1
    (nothing / "docker").unlink()
    with choose(nothing) as (cluster, lacks):
        assert isinstance(cluster, Scripted)
        assert lacks[1:] == ["there is no docker"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoCluster, match="network namespaces need root"), choose(nothing):
        pass


def have(folder: Path, *programs: str) -> None:
    """Puts programs there that print nothing."""
    for program in programs:
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)


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
