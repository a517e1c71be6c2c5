"""Writes the tables of values in the chart's README.md from the comments of its values.yaml.

A comment that begins with `# --` describes the value under it, `# @section` begins a table. The tables are between two
marks in README.md. The other text there is written by hand.

    chart_readme.py [--check]     with --check, writes nothing; the exit status shows whether the tables are up to date
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).resolve().parents[1] / "helm" / "lattice-rdzv"
BEGIN, END = "<!-- values: made by scripts/chart_readme.py -->", "<!-- /values -->"


class Value(NamedTuple):
    """A row of a table."""

    section: str
    key: str
    default: Any
    description: str


def rows(text: str) -> Iterator[Value]:
    """Yields every described value of a values.yaml in order."""
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    section, description = "", ""
    for line in text.splitlines():
        if not line.strip():
            description = ""
        elif match := re.fullmatch(r"\s*# @section (.*)", line):
            section = match[1]
        elif match := re.fullmatch(r"\s*# -- (.*)", line):
            description = match[1]
        elif (match := re.fullmatch(r"\s*# (.*)", line)) and description:
            description += f" {match[1]}"
        elif match := re.match(r"( *)([A-Za-z0-9]+):", line):
            indent = len(match[1])
            path = [*((deep, key) for deep, key in path if deep < indent), (indent, match[2])]
            if description:
                key = ".".join(name for _, name in path)
                yield Value(section, key, value_at(values, key), description)
            description = ""


def value_at(values: Any, key: str) -> Any:
    """Returns the value of a dotted key."""
    for name in key.split("."):
        values = values[name]
    return values


def kind(value: Any) -> str:
    """Returns the type of a value as helm-docs names it."""
    names = {bool: "bool", int: "int", str: "string", list: "list", dict: "object", type(None): "int"}
    return names[type(value)]


def tables(text: str) -> str:
    """Returns the tables of all sections."""
    out: list[str] = []
    section = None
    for row in rows(text):
        if row.section != section:
            section = row.section
            out += ["", f"### {section}", "", "| Key | Type | Default | Description |", "|---|---|---|---|"]
        default = json.dumps(row.default).replace("|", "\\|")
        out.append(
            f"| `{row.key}` | {kind(row.default)} | `{default}` | {row.description.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(out[1:]) + "\n"


def with_tables(readme: str, text: str) -> str:
    """Returns the README with the tables between its marks."""
    head, _, rest = readme.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        sys.exit(f"README.md has to contain these two lines: {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{tables(text)}\n{END}{tail}"


def main() -> None:
    """Usage: chart_readme.py [--check]."""
    path = CHART / "README.md"
    before = path.read_text(encoding="utf-8")
    after = with_tables(before, (CHART / "values.yaml").read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.exit(
                "the tables of values in the chart's README.md are not those of values.yaml; run: make chart-readme"
            )
        return
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
