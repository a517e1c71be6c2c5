"""Which cluster the scenarios use. No cluster is created: the programs here do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import FAMILIES, Given, Kind, NoCluster, choose

VARIABLES = ("KUBECONFIG", "KIND_EXPERIMENTAL_PROVIDER", "LATTICE_E2E_IMAGE", "LATTICE_E2E_FAMILY", "LATTICE_E2E_KEEP")


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Provides a machine without a cluster and without programs. The folder is its PATH."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def have(folder: Path, *programs: str, printing: str = "") -> None:
    """Creates programs that print this text with any arguments."""
    for program in programs:
        (folder / program).write_text(f"#!/bin/sh\necho '{printing}'\n")
        (folder / program).chmod(0o755)


def test_users_cluster_comes_first(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(nothing, "kubectl", "kind", "docker")
    monkeypatch.setenv("KUBECONFIG", f"{nothing}/one:{nothing}/other")
    monkeypatch.setenv("LATTICE_E2E_IMAGE", "registry.example.com:5000/agent:1")
    with choose(nothing) as (cluster, reasons):
        assert isinstance(cluster, Given)
        assert reasons == []
        assert cluster.agent_image == "registry.example.com:5000/agent:1"
        assert cluster.no_faults


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kind_comes_next(nothing: Path, monkeypatch: pytest.MonkeyPatch, engine: str, family: str) -> None:
    """It uses the engine that kind itself would use, and a separate cluster for each address family."""
    have(nothing, "kubectl", "kind", engine)
    monkeypatch.setenv("LATTICE_E2E_FAMILY", family)
    monkeypatch.setenv("KIND_EXPERIMENTAL_PROVIDER", engine)
    with choose(nothing) as (cluster, reasons):
        assert isinstance(cluster, Kind)
        assert len(reasons) == 1
        assert cluster.engine == engine
        assert cluster.name.startswith("lattice-rdzv-e2e")
        assert cluster.name.endswith(family) == (family != "ipv4")


def test_existing_kind_cluster_is_used_only_if_clusters_are_kept(
    nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(nothing, "kubectl", "docker")
    have(nothing, "kind", printing="another lattice-rdzv-e2e")
    with pytest.raises(NoCluster, match="there is a kind cluster `lattice-rdzv-e2e` already"), choose(nothing):
        pass
    monkeypatch.setenv("LATTICE_E2E_KEEP", "1")
    # The cluster is not deleted afterwards, because the deletion would fail with this kind.
    with choose(nothing) as (cluster, _):
        have(nothing, "kind")
        (nothing / "kind").write_text("#!/bin/sh\nexit 1\n")
    assert isinstance(cluster, Kind)


def test_without_a_cluster_each_missing_requirement_is_named(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoCluster) as caught, choose(nothing):
        pass
    said = str(caught.value)
    wanted = ["KUBECONFIG is not set", "kind is not on the PATH", "there is no docker"]
    assert [one for one in wanted if one not in said] == []
    monkeypatch.setenv("KUBECONFIG", str(nothing / "config"))
    with pytest.raises(NoCluster, match="LATTICE_E2E_IMAGE names no image") as caught, choose(nothing):
        pass
    assert "KUBECONFIG is not set" not in str(caught.value)
