"""The check of phrases, `scripts/prose.py`: none in documents, and no more in code than before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = r"\b(nobody|somebody|anybody|everybody)\b"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "prose-baseline.json").write_text(json.dumps({NOBODY: 1}))
    (tmp_path / "README.md").write_text("A node joins.\n\n```text\nnobody waits\n```\n\nThe log has `nobody waits`.\n")
    (tmp_path / "core.rs").write_text("// Nobody waits.\nlet a = 1;\n")
    return tmp_path


def run(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "prose.py", "--root", root, *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_as_many_phrases_as_before_are_accepted(tree: Path) -> None:
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


def test_new_phrase_in_code_is_reported_with_its_place(tree: Path) -> None:
    (tree / "more.py").write_text('print("somebody waits")\n')
    status, output = run(tree)
    assert status == 1
    assert "more.py:1: `somebody`" in output
    assert "code has 2 of this phrase, and had 1" in output


def test_line_with_a_reason_is_accepted(tree: Path) -> None:
    (tree / "more.py").write_text('print("somebody waits")  # style: ok a name\n')
    assert run(tree) == (0, "")


def test_write_lowers_the_baseline_and_never_raises_it(tree: Path) -> None:
    (tree / "core.rs").write_text("let a = 1;\n")
    assert run(tree, "--write") == (0, "")
    assert json.loads((tree / "scripts" / "prose-baseline.json").read_text())[NOBODY] == 0
    (tree / "core.rs").write_text("// Nobody waits.\n")
    assert run(tree, "--write")[0] == 1
    assert json.loads((tree / "scripts" / "prose-baseline.json").read_text())[NOBODY] == 0
