"""The documentation site: its links, its pages from the code, and the check of what was built. `make docs` builds it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lattice_rdzv
from lattice_rdzv.cli import COMMANDS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import site_pages  # noqa: E402
import site_reference  # noqa: E402

BASE = "https://git.example.com/team/project/blob/main/"
PAGES = site_pages.pages(["README.md", "CHANGELOG.md", "docs/settings.md", "docs/spares.md", "examples/job/README.md"])


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("docs/spares.md", "settings.md#times", "settings.md#times"),
        ("docs/spares.md", "../README.md#quick-start", "index.md#quick-start"),
        ("docs/spares.md", "../examples/job/README.md", "examples/job/README.md"),
        ("docs/spares.md", "../examples/job", "examples/job/README.md"),
        ("docs/spares.md", "../src/hosting.rs", f"{BASE}src/hosting.rs"),
        ("docs/spares.md", "#here", "#here"),
        ("docs/spares.md", "https://etcd.io", "https://etcd.io"),
        ("README.md", f"{BASE}docs/settings.md", "settings.md"),
        ("README.md", f"{BASE}LICENSE", f"{BASE}LICENSE"),
        ("examples/job/README.md", "../../docs/settings.md", "../../settings.md"),
        ("examples/job/README.md", "job.yaml", f"{BASE}examples/job/job.yaml"),
    ],
)
def test_link_leads_to_a_page_of_the_site_or_else_to_the_repository(source: str, target: str, expected: str) -> None:
    text = f"[text]({target}) and `[code]({target})`\n\n[name]: {target}\n"
    assert site_pages.rewrite(text, source, PAGES, BASE) == (
        f"[text]({expected}) and `[code]({target})`\n\n[name]: {expected}\n"
    )


def test_table_of_settings_has_every_key_of_the_core() -> None:
    from lattice_rdzv import _core
    from lattice_rdzv.errors import SettingsError

    with pytest.raises(SettingsError, match="known settings are") as refused:
        _core.Settings({"no_such_setting": "1"}, {})
    known = re.findall(r"`(\w+)`", str(refused.value).split("known settings are")[1])
    text = dict(site_reference.reference_pages(ROOT))["reference/keys.md"]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == known
    assert "| `user` |  | `LATTICE_RDZV_USER` | The user's name. |" in text


def test_command_line_page_has_every_command() -> None:
    text = site_reference.command_line()
    assert sorted(re.findall(r"^usage: lattice-rdzv (\w+)", text, re.MULTILINE)) == sorted(COMMANDS)


def test_python_page_has_every_public_name_by_its_public_name() -> None:
    text = dict(site_reference.reference_pages(ROOT))["reference/python.md"]
    listed = set(re.findall(r"^::: lattice_rdzv\.([\w.]+)$", text, re.MULTILINE))
    public = {name for name in lattice_rdzv.__all__ if name[0] != "_" and not name.endswith("Error")}
    assert listed == public - {"errors"} | {"types"}


def check(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "check_site.py", folder], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a.js").write_text("")
    (tmp_path / "index.html").write_text(
        '<a href="https://etcd.io">x</a><a href="#y">y</a><script src="assets/a.js"></script>'
    )
    return tmp_path


def test_site_that_is_complete_passes(site: Path) -> None:
    assert check(site) == (0, "")


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        ('<script src="https://unpkg.com/x.js"></script>', "loads from another host: https://unpkg.com/x.js"),
        (
            '<link rel="stylesheet" href="//fonts.example.com/x.css">',
            "loads from another host: //fonts.example.com/x.css",
        ),
        ('<img src="https://example.com/x.png">', "loads from another host: https://example.com/x.png"),
        (
            '<a href="rust/lattice_rdzv/index.html">x</a>',
            "there is no such file in the site: rust/lattice_rdzv/index.html",
        ),
        ('<script src="/assets/b.js"></script>', "there is no such file in the site: /assets/b.js"),
    ],
)
def test_problem_of_a_page_is_reported(site: Path, element: str, problem: str) -> None:
    (site / "page.html").write_text(element)
    status, output = check(site)
    assert status == 1
    assert f"page.html: {problem}" in output


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert check(tmp_path)[0] == 1
