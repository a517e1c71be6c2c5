"""Generates the pages of the documentation site from the code: settings, command line, APIs."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lattice_rdzv.cli import COMMANDS

PYTHON = """\
# Python API

The names of the package `lattice_rdzv`. The [README](../index.md#python-api) has an example.

::: lattice_rdzv.join
::: lattice_rdzv.Run
::: lattice_rdzv.World
::: lattice_rdzv.Member
::: lattice_rdzv.Change
::: lattice_rdzv.Closed
::: lattice_rdzv.Store
::: lattice_rdzv.serve
::: lattice_rdzv.Server
::: lattice_rdzv.status

## Types of the status

::: lattice_rdzv.types
    options: {show_root_heading: false, show_root_toc_entry: false, heading_level: 3}
"""
ASYNCIO = """\
# Python API for asyncio

::: lattice_rdzv.aio
"""
EXCEPTIONS = """\
# Exceptions

Every exception that the package raises by itself is a `RendezvousError`. Under torchrun, torch's own classes are raised with
the same message.

::: lattice_rdzv.errors
    options: {show_root_heading: false, show_root_toc_entry: false}
"""
TORCH = """\
# torchrun plugin

torchrun finds the backend by the entry point `lattice` in the group `torchrun.handlers`.

::: lattice_rdzv.torch.create_handler
::: lattice_rdzv.torch.handler.LatticeRendezvousHandler

## Survivors

[Survivors](../survivors.md) describes this loop.

::: lattice_rdzv.torch.elastic.join
::: lattice_rdzv.torch.elastic.Job
::: lattice_rdzv.torch.elastic.State
::: lattice_rdzv.torch.elastic.World
::: lattice_rdzv.torch.elastic.WorldChanged
::: lattice_rdzv.torch.elastic.StateLost
"""
# Plain HTML: rustdoc writes these files after the pages are checked, and scripts/check_site.py checks the link.
RUST = """\
# Rust API

The core is the crate `lattice-rdzv`. Its documentation, with private items, is made by rustdoc:
<a href="../rust/lattice_rdzv/index.html">crate `lattice_rdzv`</a>.
"""


class Key(NamedTuple):
    """A setting as src/settings/keys.rs has it."""

    name: str
    variable: str
    option: str


def reference_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each page."""
    yield "reference/python.md", PYTHON
    yield "reference/asyncio.md", ASYNCIO
    yield "reference/exceptions.md", EXCEPTIONS
    yield "reference/torch.md", TORCH
    yield "reference/rust.md", RUST
    yield "reference/command-line.md", command_line()
    folder = root / "src" / "settings"
    # `mod.rs` first: its comments of a field are the ones of the key.
    files = sorted(folder.glob("*.rs"), key=lambda file: (file.name != "mod.rs", file.name))
    fields = "".join(file.read_text() for file in files)
    yield "reference/keys.md", settings((folder / "keys.rs").read_text(), fields)


def command_line() -> str:
    """Returns the page with the help of each command."""
    parts = ["# Command line\n\nWhat `lattice-rdzv COMMAND --help` prints.\n"]
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"lattice-rdzv {name}",
            description=command.summary,
            epilog=command.examples,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
        )
        command.add_arguments(parser)
        parts.append(f"## lattice-rdzv {name}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)


def settings(keys: str, fields: str) -> str:
    """Returns the table of all settings, from the core's table of keys and from the comments of their fields. Pure."""
    comments = comments_of(fields)
    rows = []
    for key in keys_of(keys):
        # Only the package itself passes this one.
        if key.name == "host_name":
            continue
        rows.append(f"| `{key.name}` | {code(key.option)} | {code(key.variable)} | {comment_of(key.name, comments)} |")
    table = "\n".join(["| key | option of torchrun | variable | meaning and default |", "|---|---|---|---|", *rows])
    return (
        "# All keys, from the code\n\nThis table is made from the source code of the core. [Settings](../settings.md) has the "
        f"same settings by topic, with more about each.\n\n{table}\n"
    )


def keys_of(text: str) -> Iterator[Key]:
    """Yields the entries of the core's table. Pure."""
    _, table = text.split("pub(super) const KEYS", 1)
    table, _ = table.split("];", 1)
    for match in re.finditer(r'key\("(\w+)"\)|with_variable\("(\w+)", "(\w+)"\)|Key \{ name: "(\w+)"([^}]*)\}', table):
        plain, name, variable, full, more = match.groups()
        if full:
            sources = re.findall(r'"([^"]+)"', more)
            option = next((source for source in sources if source.startswith("--")), "")
            variable = next((source for source in sources if not source.startswith("--")), "")
            yield Key(full, variable, option)
        else:
            yield Key(plain or name, variable or "", "")


def comments_of(text: str) -> dict[str, str]:
    """Returns the comment of each public field of the structs of settings, by the field's name. Pure."""
    found = re.findall(r"((?:^ *///.*\n)+)(?: *#\[.*\]\n)*^ *pub (\w+): ", text, re.MULTILINE)
    comments: dict[str, str] = {}
    for comment, field in found:
        lines = (line.strip().removeprefix("///").strip() for line in comment.splitlines())
        comments.setdefault(field, " ".join(lines).replace("|", "\\|"))
    return comments


def comment_of(key: str, comments: dict[str, str]) -> str:
    """Returns the description of a key: the comment of its field, or the first comment that names the key. Pure."""
    comment = comments.get(key) or next((text for text in comments.values() if f"`{key}`" in text), "")
    assert comment, f"no field of the settings has a comment for the key: {key}"
    # Links of rustdoc.
    return re.sub(r"\[(`[^`\]]+`)\]", r"\1", comment)


def code(text: str) -> str:
    """Returns a name as code, or nothing."""
    return f"`{text}`" if text else ""
