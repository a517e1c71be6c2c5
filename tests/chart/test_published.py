"""The packaged chart, as it is published: from any web server, from an OCI registry, and from a checkout."""

from __future__ import annotations

import http.server
import os
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from harness.ports import free_port
from harness.wait import wait_for

from chart.render import parse
from chart.tools import CHART, HELM_VERSIONS, ROOT, helm, tool

Run = Callable[..., str]


@pytest.fixture(params=HELM_VERSIONS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs one release of Helm with a home of its own."""
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
    """What `make chart` puts into dist/chart: the package and the index."""
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([ROOT / "scripts" / "chart-package", helm(), folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def web(published: Path) -> Iterator[str]:
    """A plain web server on that folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def registry() -> Iterator[str]:
    """An OCI registry in memory."""
    address = f"localhost:{free_port()}"
    process = subprocess.Popen([tool("registry/registry"), address], stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_for("the registry answers", answers)
        yield address
    finally:
        process.kill()
        process.wait()


def test_helm_repo_add_finds_and_renders_it(run: Run, web: str) -> None:
    run("repo", "add", "lattice", web)
    run("repo", "update")
    assert "lattice/lattice-rdzv" in run("search", "repo", "lattice")
    rendered = parse(run("template", "rdzv", "lattice/lattice-rdzv", "--namespace", "lattice"))
    assert sorted(one["kind"] for one in rendered) == ["ConfigMap", "Deployment", "Pod", "Service", "Service"]


def test_helm_push_and_pull_by_oci(run: Run, published: Path, registry: str, request: pytest.FixtureRequest) -> None:
    version = request.node.callspec.params["run"]
    # Helm talks to localhost in the clear by itself; in 3.8 it was the only way.
    insecure = [] if version == "3.8.2" else ["--plain-http"]
    run("push", published / "lattice-rdzv-0.2.0.tgz", f"oci://{registry}/charts", *insecure)
    rendered = run("template", "rdzv", f"oci://{registry}/charts/lattice-rdzv", "--version", "0.2.0", *insecure)
    assert "name: lattice-rdzv-client" in rendered


def test_the_command_of_the_readme_renders_from_the_checkout(run: Run) -> None:
    """All of `helm install rdzv . --namespace lattice --create-namespace` but the cluster."""
    dry = run("template", "rdzv", ".", "--namespace", "lattice", "--create-namespace", folder=CHART)
    assert "namespace: lattice" in dry


def test_the_package_holds_what_is_needed_and_no_more(published: Path) -> None:
    with tarfile.open(published / "lattice-rdzv-0.2.0.tgz") as package:
        names = {name.removeprefix("lattice-rdzv/") for name in package.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "values-production.yaml", "README.md"} <= names
    assert {"UPGRADING.md", "LICENSE", "templates/NOTES.txt", "files/auth.py", "docs/runbooks/nospace.md"} <= names
    assert not [name for name in names if name.startswith("ci/") or "__pycache__" in name]


def test_the_index_tells_version_and_digest(published: Path) -> None:
    (entry,) = yaml.safe_load((published / "index.yaml").read_text())["entries"]["lattice-rdzv"]
    assert (entry["version"], entry["appVersion"]) == ("0.2.0", "3.5.5")
    assert entry["urls"] == ["lattice-rdzv-0.2.0.tgz"]
    assert len(entry["digest"]) == 64
