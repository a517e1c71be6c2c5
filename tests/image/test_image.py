"""`make image`: builds are reproducible and add one small layer with the files of one wheel, and the user has no privileges.

The tests need buildah, a wheel in dist/, and the base image in buildah's storage or in a registry. Otherwise, they are skipped,
or fail with `LATTICE_IMAGE_TOOLS=required`. tests/e2e runs pods with the image.
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

pytestmark = pytest.mark.timeout(900)

BASE = os.environ.get("BASE", "docker.io/library/python:3.11-slim")
EPOCH = 1_700_000_000
LARGEST_BYTES = 20_000_000
# The tests may run where the kernel allows neither namespaces nor a separate network.
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
    """Returns the first requirement that is missing, or `None`."""
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
    """Builds the image under a unique name."""
    requirement = missing()
    if requirement is not None:
        if os.environ.get("LATTICE_IMAGE_TOOLS") == "required":
            pytest.fail(f"missing: {requirement}")
        pytest.skip(f"missing: {requirement}")
    name = f"localhost/lattice-test-{uuid.uuid4().hex[:8]}:1"
    build(name)
    yield name
    buildah("rmi", name)


@pytest.fixture(scope="module")
def layers(image: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns the layers that the base does not have."""
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
def run(image: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs a command in a container of the image, and returns its output.

    The output goes through a file, because `buildah run` with this isolation sometimes loses it on a busy machine.
    """
    container = buildah("from", image).stdout.strip()
    # The user of the image writes into it.
    tmp_path.chmod(0o777)

    def inside(*command: str) -> str:
        to_file = ("sh", "-c", 'exec "$@" > /output/text', "sh")
        buildah("run", "--isolation", "chroot", "--volume", f"{tmp_path}:/output", container, "--", *to_file, *command)
        return (tmp_path / "text").read_text()

    yield inside
    buildah("rm", container)


def test_two_builds_have_one_digest(image: str) -> None:
    again = image.replace(":1", ":2")
    build(again)
    digests = [digest(image), digest(again)]
    buildah("rmi", again)
    assert digests[0].startswith("sha256:")
    assert digests[0] == digests[1]


def test_image_adds_one_small_layer_whose_files_have_one_date(layers: list[Path]) -> None:
    [layer] = layers
    assert layer.stat().st_size < LARGEST_BYTES
    with tarfile.open(layer) as files:
        members = files.getmembers()
    assert {member.mtime for member in members} == {EPOCH}
    names = [member.name for member in members if not member.isdir()]
    assert any(name.endswith("_core.abi3.so") for name in names)
    others = [name for name in names if "lattice_rdzv" not in name and not name.endswith("bin/lattice-rdzv")]
    assert not others
    assert not [name for name in names if name.endswith(".pyc")]


def test_user_is_a_number_and_jobs_choose_the_command(image: str) -> None:
    config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image).stdout)["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config.get("Entrypoint") is None
    assert config["Cmd"] == ["lattice-rdzv", "doctor"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "lattice-rdzv"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    _, version, *_ = next(ROOT.glob("dist/lattice_rdzv-*.whl")).name.split("-")
    assert labels["org.opencontainers.image.version"] == version


def test_package_works_for_a_user_without_a_name(run: Callable[..., str]) -> None:
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


def test_image_adds_no_compiler(run: Callable[..., str]) -> None:
    assert "none" in run("sh", "-c", "command -v cc gcc clang rustc cargo || echo none")
