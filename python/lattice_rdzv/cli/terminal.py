"""Plain output for people. Colors are used only on a terminal, so that programs can read the output."""

import os
import sys
from collections.abc import Sequence

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "grey": 90}


def coloured(text: str, colour: str) -> str:
    """Returns the text in a color if the output goes to a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Formats rows of equal length in columns. The last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(indent + line for line in lines)
