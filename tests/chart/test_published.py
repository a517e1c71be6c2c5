"""The packaged chart as it is published: on any web server, in an OCI registry, and in a checkout."""

from __future__ import annotations

import base64
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from chart.render import default_values, parse
from chart.repository import SOURCE, package, registry_in_memory, served
from chart.tools import CHART, HELM_VERSIONS, helm

Run = Callable[..., str]


@pytest.fixture(params=HELM_VERSIONS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs one release of Helm with separate folders for its files."""
    environment = {
        **os.environ,
        "HELM_CONFIG_HOME": str(tmp_path / "config"),
        "HELM_CACHE_HOME": str(tmp_path / "cache"),
        "HELM_DATA_HOME": str(tmp_path / "data"),
    }

    def call(*arguments: str | Path, folder: Path = tmp_path) -> str:
        done = subprocess.run(
            [helm(request.param), *arguments], capture_output=True, text=True, check=False, env=environment, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the package and the index, which `make chart` writes to dist/chart."""
    folder = tmp_path_factory.mktemp("published")
    assert package(folder).returncode == 0
    return folder


@pytest.fixture
def web(published: Path) -> Iterator[str]:
    """Serves the folder with a plain web server."""
    with served(published) as url:
        yield url


@pytest.fixture
def registry() -> Iterator[str]:
    """Runs an OCI registry."""
    with registry_in_memory() as address:
        yield address


def test_helm_repo_add_finds_and_renders_it(run: Run, web: str) -> None:
    run("repo", "add", "lattice", web)
    run("repo", "update")
    assert "lattice/lattice-rdzv" in run("search", "repo", "lattice")
    rendered = parse(run("template", "rdzv", "lattice/lattice-rdzv", "--namespace", "lattice"))
    assert sorted(one["kind"] for one in rendered) == ["ConfigMap", "Deployment", "Pod", "Service", "Service"]
    check_metadata(run("show", "chart", "lattice/lattice-rdzv"))


def test_helm_push_and_pull_by_oci(run: Run, published: Path, registry: str, request: pytest.FixtureRequest) -> None:
    version = request.node.callspec.params["run"]
    # Helm 3.8 has no option for plain HTTP, but uses it for localhost.
    insecure = [] if version == "3.8.1" else ["--plain-http"]
    run("push", published / "lattice-rdzv-0.2.0.tgz", f"oci://{registry}/charts", *insecure)
    rendered = run("template", "rdzv", f"oci://{registry}/charts/lattice-rdzv", "--version", "0.2.0", *insecure)
    assert "name: lattice-rdzv-client" in rendered
    check_metadata(run("show", "chart", f"oci://{registry}/charts/lattice-rdzv", "--version", "0.2.0", *insecure))


def check_metadata(shown: str) -> None:
    """Checks the metadata that a registry shows on the page of a chart."""
    # Helm 3.8 prints a line about the download before the chart's own text.
    chart = yaml.safe_load(shown[shown.index("annotations:") :])
    assert chart["home"] == SOURCE
    assert chart["sources"] == [SOURCE]
    assert [one["name"] for one in chart["maintainers"]] == ["Lattice Rendezvous maintainers"]
    assert chart["description"]
    assert "rendezvous" in chart["keywords"]
    head, _, data = chart["icon"].partition(",")
    assert head == "data:image/svg+xml;base64"
    icon = ElementTree.fromstring(base64.b64decode(data, validate=True))
    assert icon.tag == "{http://www.w3.org/2000/svg}svg"
    annotations = {key.removeprefix("artifacthub.io/"): value for key, value in chart["annotations"].items()}
    assert annotations.keys() == {"category", "changes", "images", "license"}
    assert (annotations["category"], annotations["license"]) == ("ai-machine-learning", "Apache-2.0")
    # A registry scans the images that it finds here.
    images = {one["name"]: one["image"] for one in yaml.safe_load(annotations["images"])}
    defaults = default_values()
    assert images == {"etcd": defaults["image"], "auth": defaults["auth"]["image"]}
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    changes = yaml.safe_load(annotations["changes"])
    assert changes
    assert all(one["kind"] in kinds and one["description"] for one in changes)


def test_package_without_a_source_has_no_home(tmp_path: Path, run: Run) -> None:
    assert package(tmp_path / "out", "").returncode == 0
    shown = yaml.safe_load(run("show", "chart", tmp_path / "out" / "lattice-rdzv-0.2.0.tgz"))
    assert not shown.keys() & {"home", "sources"}


@pytest.mark.parametrize("source", ["example.com/lattice", 'https://example.com/"', "https://example.com/ x"])
def test_source_that_is_not_a_url_is_refused(tmp_path: Path, source: str) -> None:
    done = package(tmp_path / "out", source)
    assert done.returncode == 1
    assert f"SOURCE must be a URL that begins with https:// or http://, but is: {source}" in done.stderr


def test_command_of_the_readme_renders_from_the_checkout(run: Run) -> None:
    """The README has `helm install rdzv . --namespace lattice --create-namespace`, which would need a cluster."""
    dry = run("template", "rdzv", ".", "--namespace", "lattice", "--create-namespace", folder=CHART)
    assert "namespace: lattice" in dry


def test_package_has_only_the_necessary_files(published: Path) -> None:
    with tarfile.open(published / "lattice-rdzv-0.2.0.tgz") as package:
        names = {name.removeprefix("lattice-rdzv/") for name in package.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "values-production.yaml", "README.md"} <= names
    assert {"UPGRADING.md", "LICENSE", "templates/NOTES.txt", "files/auth.py", "docs/runbooks/nospace.md"} <= names
    assert not [name for name in names if name.startswith("ci/") or "__pycache__" in name]


def test_index_has_version_and_digest(published: Path) -> None:
    (entry,) = yaml.safe_load((published / "index.yaml").read_text())["entries"]["lattice-rdzv"]
    assert (entry["version"], entry["appVersion"]) == ("0.2.0", "3.5.5")
    assert entry["urls"] == ["lattice-rdzv-0.2.0.tgz"]
    assert len(entry["digest"]) == 64
