"""Looks for phrases that this project does not use, because readers stumble over them.

Documents must have none. Code, comments, and messages must not gain any: the number that each phrase had is in
scripts/prose-baseline.json, and a number that has become smaller should be written there with --write. A line that ends with
`style: ok` and a reason, in a comment, is left out.

    prose.py          prints what is not allowed; exit status 1 if there is something
    prose.py --list   prints every place in code, too
    prose.py --write  writes the numbers of now, which must not be larger
    prose.py --root DIR
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
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
# What others wrote or programs made, and the list above.
NOT_OURS = re.compile(r"^tests/(chart/golden|clients)/|^Cargo\.lock$|^scripts/prose\.py$|^tests/python/test_prose\.py$")
EXEMPT = re.compile(r"style: ok \w")
BASELINE = Path("scripts/prose-baseline.json")


class Place(NamedTuple):
    """A phrase, and where it stands."""

    file: str
    line: int
    phrase: str
    text: str


def places(file: str, text: str, *, original: str) -> Iterator[Place]:
    """Where a text has a banned phrase. `original` has the lines as they are written. Pure."""
    lines = original.splitlines()
    for phrase, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            if not EXEMPT.search(lines[number - 1]):
                yield Place(file, number, phrase, " ".join(match.group().split()))


def in_documents(root: Path) -> list[Place]:
    """Those in Markdown, outside of code and messages, which documents quote."""
    found: list[Place] = []
    for path in markdown(root):
        text = path.read_text(encoding="utf-8")
        found += places(path.relative_to(root).as_posix(), CODE.sub(blank, FENCE.sub(blank, text)), original=text)
    return found


def in_code(root: Path) -> list[Place]:
    """Those in all other files that people write."""
    found: list[Place] = []
    for name in names(root):
        if CODE_NAMES.search(name) and not NOT_OURS.search(name):
            text = (root / name).read_text(encoding="utf-8")
            found += places(name, text, original=text)
    return found


def names(root: Path) -> list[str]:
    """The files of the repository, or of a folder that is none."""
    if not (root / ".git").exists():
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def main() -> None:
    """Looks, and compares with the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every place in code, too")
    parser.add_argument("--write", action="store_true", help="write the numbers of now")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder whose files are read")
    arguments = parser.parse_args()
    root: Path = arguments.root.resolve()
    documents, code = in_documents(root), in_code(root)
    baseline: dict[str, int] = json.loads((root / BASELINE).read_text(encoding="utf-8"))
    numbers = Counter(place.phrase for place in code)
    more = [phrase for phrase in PATTERNS if numbers[phrase] > baseline.get(phrase, 0)]
    for place in documents + [place for place in code if arguments.list or place.phrase in more]:
        print(f"{place.file}:{place.line}: `{place.text}`: {BANNED[place.phrase]}")
    for phrase in more:
        print(f"code has {numbers[phrase]} of this phrase, and had {baseline.get(phrase, 0)}: {phrase}")
    if documents or more:
        sys.exit(1)
    if arguments.write:
        text = json.dumps({phrase: numbers[phrase] for phrase in PATTERNS}, indent=2)
        (root / BASELINE).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
