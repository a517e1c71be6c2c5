"""Which cluster is taken, without one: programs that do nothing, and clusters that are not made."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import FAMILIES, Given, Kind, NoCluster, choose

VARIABLES = ("KUBECONFIG", "KIND_EXPERIMENTAL_PROVIDER", "LATTICE_E2E_IMAGE", "LATTICE_E2E_FAMILY", "LATTICE_E2E_KEEP")


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has neither a cluster nor a program; the folder is its PATH."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def have(folder: Path, *programs: str, printing: str = "") -> None:
    """Puts programs there that print this, whatever they are told."""
    for program in programs:
        (folder / program).write_text(f"#!/bin/sh\necho '{printing}'\n")
        (folder / program).chmod(0o755)


def test_somebodys_own_comes_first(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(nothing, "kubectl", "kind", "docker")
    monkeypatch.setenv("KUBECONFIG", f"{nothing}/one:{nothing}/other")
    monkeypatch.setenv("LATTICE_E2E_IMAGE", "registry.example.com:5000/agent:1")
    with choose(nothing) as (cluster, lacks):
        assert isinstance(cluster, Given)
        assert lacks == []
        assert cluster.agent_image == "registry.example.com:5000/agent:1"
        assert cluster.no_faults


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kind_comes_next(nothing: Path, monkeypatch: pytest.MonkeyPatch, engine: str, family: str) -> None:
    """With the engine that kind itself would use, in a cluster of its own for each family of addresses."""
    have(nothing, "kubectl", "kind", engine)
    monkeypatch.setenv("LATTICE_E2E_FAMILY", family)
    monkeypatch.setenv("KIND_EXPERIMENTAL_PROVIDER", engine)
    with choose(nothing) as (cluster, lacks):
        assert isinstance(cluster, Kind)
        assert len(lacks) == 1
        assert cluster.engine == engine
        assert cluster.name.startswith("lattice-rdzv-e2e")
        assert cluster.name.endswith(family) == (family != "ipv4")


def test_one_of_its_name_is_used_only_when_it_is_to_be_kept(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(nothing, "kubectl", "docker")
    have(nothing, "kind", printing="another lattice-rdzv-e2e")
    with pytest.raises(NoCluster, match="there is a kind cluster `lattice-rdzv-e2e` already"), choose(nothing):
        pass
    monkeypatch.setenv("LATTICE_E2E_KEEP", "1")
    # It is not deleted afterwards: a kind that could not would fail.
    with choose(nothing) as (cluster, _):
        have(nothing, "kind")
        (nothing / "kind").write_text("#!/bin/sh\nexit 1\n")
    assert isinstance(cluster, Kind)


def test_without_any_each_lack_is_named(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoCluster) as caught, choose(nothing):
        pass
    said = str(caught.value)
    wanted = ["KUBECONFIG is not set", "kind is not on the PATH", "there is no docker"]
    assert [one for one in wanted if one not in said] == []
    monkeypatch.setenv("KUBECONFIG", str(nothing / "config"))
    with pytest.raises(NoCluster, match="LATTICE_E2E_IMAGE names no image") as caught, choose(nothing):
        pass
    assert "KUBECONFIG is not set" not in str(caught.value)
