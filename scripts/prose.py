"""Looks for phrases that this project does not use, because readers stumble over them.

Documents, code, comments, and messages must have none. A line that ends with `style: ok` and a reason, in a comment, is left
out.

    prose.py [--root DIR]    prints what is not allowed; exit status 1 if there is something
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from links import CODE, FENCE, ROOT, blank, markdown

# A phrase, and what to write instead.
BANNED = {
    r"\b(is|are|was|were|be|been) (told|said)\b": "name who notifies, announces, or reports",
    r"(^|[.;:] )(who|whoever|what) [a-z]+s\b|\b(for|of) who\b": "start with the thing itself: `the node that ...`",
    r"\b(nobody|somebody|anybody|everybody)\b": "name the node, the agent, or the user",
    r"(?<!stay )\bthe same(?=[,.;:)|])|\bof (its|their|one's) own(?=[,.;:)|]|$)": "repeat the noun, or write `separate`",
    r"\bhis\b|\bnews (are|come|have)\b": "write `the user's`, or `events`",
    r"\b(comes?|came|puts?|gives?) back\b": "write `return`, `reconnect`, `restore`, or `revoke`",
    r"\b(trains?|goes?|waits?|tried) on\b|\bhangs? on\b|\bgoes? with\b": "write `continue`, `keep ...ing`, or `is attached to`",
    r"\b(mend|lend|lent|lack)(s|ed|ing)?\b|\b(take|takes|taken|taking|of) office\b": "write `fix`, `reuse`, `is missing`, or `become coordinator`",
    r"\b(time-out|look-up|back-off)s?\b|\b(for ever|as ever|all the same)\b": "write it as one word, or leave it out",
}
PATTERNS = {phrase: re.compile(phrase, re.IGNORECASE | re.MULTILINE) for phrase in BANNED}
CODE_NAMES = re.compile(
    r"\.(rs|py|pyi|sh|sbatch|toml|ya?ml|tpl|txt)$|(^|/)(Makefile|Dockerfile)$|^(scripts|\.ci)/[a-z-]+$"
)
# Files that others wrote or that programs created, and the list above.
NOT_OURS = re.compile(r"^tests/(chart/golden|clients)/|^Cargo\.lock$|^scripts/prose\.py$|^tests/python/test_prose\.py$")
EXEMPT = re.compile(r"style: ok \w")


class Place(NamedTuple):
    """A phrase and its place."""

    file: str
    line: int
    phrase: str
    text: str


def places(file: str, text: str, *, original: str) -> Iterator[Place]:
    """Yields the banned phrases of a text. `original` is the unmodified text of the file. Pure."""
    lines = original.splitlines()
    for phrase, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            if not EXEMPT.search(lines[number - 1]):
                yield Place(file, number, phrase, " ".join(match.group().split()))


def in_documents(root: Path) -> list[Place]:
    """Returns the phrases in Markdown, outside of quoted code and messages."""
    found: list[Place] = []
    for path in markdown(root):
        text = path.read_text(encoding="utf-8")
        found += places(path.relative_to(root).as_posix(), CODE.sub(blank, FENCE.sub(blank, text)), original=text)
    return found


def in_code(root: Path) -> list[Place]:
    """Returns the phrases in all other files that people write."""
    found: list[Place] = []
    for name in names(root):
        if CODE_NAMES.search(name) and not NOT_OURS.search(name):
            text = (root / name).read_text(encoding="utf-8")
            found += places(name, text, original=text)
    return found


def names(root: Path) -> list[str]:
    """Returns the files of the repository, or of a folder without git."""
    if not (root / ".git").exists():
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def main() -> None:
    """Finds the phrases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder whose files are read")
    root: Path = parser.parse_args().root.resolve()
    found = in_documents(root) + in_code(root)
    for place in found:
        print(f"{place.file}:{place.line}: `{place.text}`: {BANNED[place.phrase]}")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
