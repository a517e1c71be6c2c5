"""Checks the links of every Markdown file of the repository, without a network.

A relative link must lead to a file of the repository, and its fragment to a heading of that file. README.md is also the page
of a package index, where relative links lead nowhere, so its links are absolute: the address of the repository, which
`project.urls` in pyproject.toml holds, and the file's path. This script maps them back to the tree. Links to other
sites are not followed.

    links.py             prints each broken link; exit status 1 if there is one
    links.py --write     gives README.md's links the address in pyproject.toml
    links.py --root DIR  reads the files below DIR instead of those of the repository
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from extra import read_toml

ROOT = Path(__file__).resolve().parent.parent
# The part between the repository's address and a path, on GitHub and on compatible forges.
TO_FILES = "/blob/main/"
# A link, an image, or the definition of a reference. Targets with spaces are not used here.
INLINE = re.compile(r"\]\(<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\)")
DEFINITION = re.compile(r"^ {0,3}\[([^\]]+)\]:\s+<?(\S+?)>?\s*$", re.MULTILINE)
REFERENCE = re.compile(r"\[[^\]\[]+\]\[([^\]\[]+)\]")
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1?\2[`~]*\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
# Folders of an unpacked archive that are not part of it.
BUILT = {".venv", ".cache", "dist", "target"}
ABSOLUTE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Link(NamedTuple):
    """A link as it is written, and its place."""

    line: int
    target: str


def blank(match: re.Match[str]) -> str:
    """Returns spaces in place of a text, so that lines keep their numbers."""
    return re.sub(r"[^\n]", " ", match.group())


def links(text: str) -> Iterator[Link]:
    """Yields the links of a Markdown text. A reference without a definition has an empty target. Pure."""
    prose = CODE.sub(blank, FENCE.sub(blank, text))
    defined = {name.casefold() for name, _ in DEFINITION.findall(prose)}
    for pattern, group in ((INLINE, 1), (DEFINITION, 2)):
        for match in pattern.finditer(prose):
            yield Link(prose.count("\n", 0, match.start()) + 1, match.group(group))
    for match in REFERENCE.finditer(prose):
        if match.group(1).casefold() not in defined:
            yield Link(prose.count("\n", 0, match.start()) + 1, "")


def anchors(text: str) -> set[str]:
    """Returns the fragments of a Markdown text's headings, as GitHub forms them. Pure."""
    found: dict[str, int] = {}
    result = set()
    for match in HEADING.finditer(FENCE.sub(blank, text)):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match.group(1)).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        result.add(f"{slug}-{number}" if number else slug)
    return result


@cache
def anchors_of(path: Path) -> set[str]:
    """Returns the fragments of a file's headings."""
    return anchors(path.read_text(encoding="utf-8"))


def check(root: Path, path: Path, base: str) -> Iterator[str]:
    """Yields the problems of the links of one file."""
    is_readme = path == root / "README.md"
    for line, target in sorted(links(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(root)}:{line}"
        if not target:
            yield f"{where}: a reference has no definition"
            continue
        if ABSOLUTE.match(target):
            if not target.startswith(base):
                if is_readme and TO_FILES in target:
                    yield f"{where}: the link must begin with {base} (run: python scripts/links.py --write): {target}"
                continue
            name, origin = target.removeprefix(base), root
        elif is_readme and not target.startswith("#"):
            yield f"{where}: a link of README.md must be absolute, for package indexes: {target}"
            continue
        else:
            name, origin = target, path.parent
        name, _, fragment = name.partition("#")
        file = (origin / unquote(name)).resolve() if name else path
        if not file.is_relative_to(root):
            yield f"{where}: the link leaves the repository: {target}"
        elif not file.exists():
            yield f"{where}: there is no such file: {target}"
        elif fragment and file.suffix == ".md" and fragment not in anchors_of(file):
            yield f"{where}: {file.relative_to(root)} has no heading for this link: {target}"


def markdown(root: Path) -> list[Path]:
    """Returns the Markdown files that git tracks or would add. Without git, returns all except those of tools and builds."""
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*.md"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        )
        return sorted(root / name for name in listed.stdout.split("\0") if name and (root / name).exists())
    return sorted(path for path in root.rglob("*.md") if not BUILT.intersection(path.relative_to(root).parts))


def repository(root: Path) -> str:
    """Returns the repository's address in pyproject.toml."""
    address: str = read_toml(root / "pyproject.toml")["project"]["urls"]["Source"]
    return address.rstrip("/")


def main() -> None:
    """Checks the links, or writes README.md's addresses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the repository's address into README.md's links")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder whose files are checked")
    arguments = parser.parse_args()
    root: Path = arguments.root.resolve()
    base = repository(root) + TO_FILES
    if arguments.write:
        readme = root / "README.md"
        text = readme.read_text(encoding="utf-8")
        readme.write_text(
            re.sub(rf"^(\[[^\]]+\]: )https://\S+?{TO_FILES}", lambda found: found.group(1) + base, text, flags=re.M),
            encoding="utf-8",
        )
    files = markdown(root)
    broken = [problem for path in files for problem in check(root, path, base)]
    for problem in broken:
        print(problem)
    if broken:
        sys.exit(f"{len(broken)} broken links in {len(files)} files")


if __name__ == "__main__":
    main()
