"""Quotations in documents: the messages in docs/troubleshooting.md are those of this version and of the installed torch."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A value of the job, in the page.
VALUE = re.compile(r"<[a-z]+>")


def quoted() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def joined(text: str) -> str:
    """Returns a source text in which literals over several lines are joined, and without the values that are inserted."""
    text = re.sub(r"\\\n\s*", "", text)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\{[^{}\n]*\}", "\0", text)


@cache
def sources() -> str:
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    elastic = Path(torch.origin).parent / "distributed" / "elastic"
    files = [*(ROOT / "src").rglob("*.rs"), *(ROOT / "python").rglob("*.py"), *elastic.rglob("*.py")]
    return "\n".join(joined(file.read_text(errors="replace")) for file in files)


def is_written(words: list[str], parts: int = 3) -> bool:
    """Returns whether the sources have these words in sequence, or in a few parts with inserted values between them."""
    if " ".join(words) in sources():
        return True
    splits = range(2, len(words) - 1) if parts > 1 else ()
    return any(" ".join(words[:at]) in sources() and is_written(words[at:], parts - 1) for at in splits)


@pytest.mark.parametrize("message", quoted())
def test_quoted_message_exists(message: str) -> None:
    parts = [part.strip("` ").split() for part in VALUE.split(message) if len(part.strip("` ").split()) > 1]
    assert parts, "a quoted message needs words to look for"
    missing = [part for part in parts if not is_written(part)]
    assert not missing
