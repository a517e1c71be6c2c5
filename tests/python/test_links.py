"""The link checker, `scripts/links.py`: what it accepts, and that it finds each kind of broken link."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = "https://git.example.com/team/project"
README = f"""\
# Title

[Settings][settings], [a heading](#title), [another site](https://example.org/x).

[settings]: {SOURCE}/blob/main/docs/settings.md#the-run-and-this-node
"""
SETTINGS = "# Settings\n\n## The run, and `this` node\n\nSee [the README](../README.md#title).\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nSource = "{SOURCE}"\n')
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "settings.md").write_text(SETTINGS)
    return tmp_path


def run(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "links.py", "--root", root, *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_links_of_the_repository_are_not_broken() -> None:
    assert run(ROOT) == (0, "")


def test_links_that_lead_somewhere_are_accepted(tree: Path) -> None:
    assert run(tree) == (0, "")


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("docs/settings.md", "[gone](gone.md)", "there is no such file: gone.md"),
        ("docs/settings.md", "[gone](../README.md#gone)", "README.md has no heading for this link: ../README.md#gone"),
        ("docs/settings.md", "[gone](#gone)", "docs/settings.md has no heading for this link: #gone"),
        ("docs/settings.md", "[outside](../../x.md)", "the link leaves the repository: ../../x.md"),
        ("docs/settings.md", "[text][nowhere]", "a reference has no definition"),
        ("README.md", "[relative](docs/settings.md)", "a link of README.md must be absolute"),
        ("README.md", f"[gone]({SOURCE}/blob/main/docs/gone.md)", "there is no such file"),
        ("README.md", f"[gone]({SOURCE}/blob/main/docs/settings.md#gone)", "docs/settings.md has no heading"),
        ("README.md", "[elsewhere](https://git.example.com/old/name/blob/main/LICENSE)", "the link must begin with"),
    ],
)
def test_broken_link_is_reported_with_its_line(tree: Path, file: str, text: str, problem: str) -> None:
    path = tree / file
    line = len(path.read_text().splitlines()) + 2
    path.write_text(path.read_text() + f"\n{text}\n")
    status, output = run(tree)
    assert status == 1
    assert f"{file}:{line}: {problem}" in output
    assert output.endswith("1 broken links in 2 files\n")


@pytest.mark.parametrize(
    "text", ["`[code](gone.md)`", "```\n[code](gone.md)\n```", "    ~~~\n    [code](gone.md)\n    ~~~"]
)
def test_links_in_code_are_not_checked(tree: Path, text: str) -> None:
    path = tree / "docs" / "settings.md"
    path.write_text(path.read_text() + f"\n{text}\n")
    assert run(tree) == (0, "")


def test_write_gives_the_readme_the_address_of_the_repository(tree: Path) -> None:
    (tree / "pyproject.toml").write_text('[project.urls]\nSource = "https://git.example.com/new/name"\n')
    assert run(tree)[0] == 1
    assert run(tree, "--write") == (0, "")
    assert (
        "[settings]: https://git.example.com/new/name/blob/main/docs/settings.md#" in (tree / "README.md").read_text()
    )
    assert "(https://example.org/x)" in (tree / "README.md").read_text()
