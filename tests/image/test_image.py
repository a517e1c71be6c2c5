"""`make image`: the same digest each time, one small layer of one wheel's files, and nobody's privileges.

Needs buildah, a wheel in dist/, and the base image in buildah's store or a registry that has it; else all of it is skipped.
With `LATTICE_IMAGE_TOOLS=required` that is a failure. Pods of it are run by tests/e2e.
"""

import json
import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chart.tools import ROOT

BASE = os.environ.get("BASE", "docker.io/library/python:3.11-slim")
EPOCH = 1_700_000_000
LARGEST_BYTES = 20_000_000
# Where there is no kernel for more: no namespaces, no network of its own.
ISOLATION = ("--isolation", "chroot", "--network", "host")


def buildah(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def build(name: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "image", name, *ISOLATION],
        env={**os.environ, "BUILDER": "buildah", "BASE": BASE, "SOURCE_DATE_EPOCH": str(EPOCH)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def digest(name: str) -> str:
    return buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", name).stdout.strip()


def missing() -> str | None:
    """What it takes and is not here."""
    if shutil.which("buildah") is None:
        return "buildah (apt-get install buildah)"
    if buildah("info", check=False).returncode != 0:
        return "a buildah that works for this user"
    if not list(ROOT.glob("dist/lattice_rdzv-*.whl")):
        return "a wheel in dist/ (make wheel)"
    here = buildah("inspect", "--type", "image", BASE, check=False).returncode == 0
    if not here and buildah("pull", "--quiet", BASE, check=False).returncode != 0:
        return f"the image {BASE}, which cannot be pulled from here either"
    return None


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image, under a name of its own."""
    lacking = missing()
    if lacking is not None:
        if os.environ.get("LATTICE_IMAGE_TOOLS") == "required":
            pytest.fail(f"lacking here: {lacking}")
        pytest.skip(f"lacking here: {lacking}")
    name = f"localhost/lattice-test-{uuid.uuid4().hex[:8]}:1"
    build(name)
    yield name
    buildah("rmi", name)


@pytest.fixture(scope="module")
def layers(image: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The layers that are not the base's."""
    ours, base = (unpacked(name, tmp_path_factory.mktemp("image")) for name in (image, BASE))
    assert [one.name for one in ours[: len(base)]] == [one.name for one in base]
    return ours[len(base) :]


def unpacked(name: str, folder: Path) -> list[Path]:
    buildah("push", "--quiet", name, f"oci:{folder}:image")
    manifest = path_of(folder, json.loads((folder / "index.json").read_text())["manifests"][0]["digest"])
    return [path_of(folder, layer["digest"]) for layer in json.loads(manifest.read_text())["layers"]]


def path_of(folder: Path, name: str) -> Path:
    return folder / "blobs" / name.replace(":", "/")


@pytest.fixture
def run(image: str) -> Iterator[Callable[..., str]]:
    """Runs a command in a container of the image."""
    container = buildah("from", image).stdout.strip()

    def inside(*command: str) -> str:
        return buildah("run", "--isolation", "chroot", container, "--", *command).stdout

    yield inside
    buildah("rm", container)


def test_two_builds_are_one_digest(image: str) -> None:
    again = image.replace(":1", ":2")
    build(again)
    digests = [digest(image), digest(again)]
    buildah("rmi", again)
    assert digests[0].startswith("sha256:")
    assert digests[0] == digests[1]


def test_it_is_one_small_layer_of_files_that_are_dated_alike(layers: list[Path]) -> None:
    [layer] = layers
    assert layer.stat().st_size < LARGEST_BYTES
    with tarfile.open(layer) as files:
        members = files.getmembers()
    assert {member.mtime for member in members} == {EPOCH}
    names = [member.name for member in members if not member.isdir()]
    assert any(name.endswith("_core.abi3.so") for name in names)
    strangers = [name for name in names if "lattice_rdzv" not in name and not name.endswith("bin/lattice-rdzv")]
    assert not strangers
    assert not [name for name in names if name.endswith(".pyc")]


def test_its_user_is_a_number_and_jobs_choose_the_command(image: str) -> None:
    config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image).stdout)["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config.get("Entrypoint") is None
    assert config["Cmd"] == ["lattice-rdzv", "doctor"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "lattice-rdzv"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    _, version, *_ = next(ROOT.glob("dist/lattice_rdzv-*.whl")).name.split("-")
    assert labels["org.opencontainers.image.version"] == version


def test_the_package_works_in_it_for_a_user_without_a_name(run: Callable[..., str]) -> None:
    assert run("id", "-u").strip() == "10001"
    assert run("python3", "-c", "import getpass; print(getpass.getuser())").strip() == "agent"
    assert "doctor" in run("lattice-rdzv", "--help")
    found = run(
        "python3",
        "-c",
        "import lattice_rdzv; from importlib.metadata import entry_points as e; "
        "print(lattice_rdzv.serve(port=0).endpoint, *e(group='torchrun.handlers').names)",
    )
    assert found.split()[1:] == ["lattice"]


def test_there_is_no_compiler_of_ours_in_it(run: Callable[..., str]) -> None:
    assert "none" in run("sh", "-c", "command -v cc gcc clang rustc cargo || echo none")
