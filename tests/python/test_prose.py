"""The check of phrases, `scripts/prose.py`: documents and code must have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("A node joins.\n\n```text\nnobody waits\n```\n\nThe log has `nobody waits`.\n")
    (tmp_path / "core.rs").write_text("// A node waits.\nlet a = 1;\n")
    return tmp_path


def run(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "prose.py", "--root", root, *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_code_in_a_document_is_not_checked(tree: Path) -> None:
    assert run(tree) == (0, "")


@pytest.mark.parametrize(
    "sentence",
    [
        "The agents are told at once.",
        "Who joins waits.",
        "It is for who waits.",
        "Then somebody decides.",
        "The other one is the same.",
        "Each has a file of its own.",
        "The user is asked for his name.",
        "A node comes back later.",
        "The job trains on.",
        "The key hangs on a lease.",
        "What is missing is mended.",
        "A time-out ends the call.",
        "It waits for ever.",
    ],
)
def test_phrase_in_a_document_is_reported_with_its_line(tree: Path, sentence: str) -> None:
    (tree / "page.md").write_text(f"# Page\n\n{sentence}\n")
    status, output = run(tree)
    assert status == 1
    assert output.startswith("page.md:3: `")


@pytest.mark.parametrize(
    "sentence", ["The two values stay the same.", "A renewal of its own lease is sent.", "Each back-end."]
)
def test_plain_sentence_is_accepted(tree: Path, sentence: str) -> None:
    (tree / "page.md").write_text(f"# Page\n\n{sentence}\n")
    assert run(tree) == (0, "")


def test_phrase_in_code_is_reported_with_its_place(tree: Path) -> None:
    (tree / "more.py").write_text('print("somebody waits")\n')
    status, output = run(tree)
    assert status == 1
    assert "more.py:1: `somebody`" in output


def test_line_with_a_reason_is_accepted(tree: Path) -> None:
    (tree / "more.py").write_text('print("somebody waits")  # style: ok a name\n')
    assert run(tree) == (0, "")
