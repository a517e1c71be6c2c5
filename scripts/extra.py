"""Prints the requirements of one extra of a pyproject.toml, one per line.

Python 3.10 has no `tomllib`, so pip's own copy of its reader serves there.
"""

import sys
from pathlib import Path
from typing import Any


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the tables of the file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Usage: extra.py PYPROJECT NAME."""
    path, name = Path(sys.argv[1]), sys.argv[2]
    extras = read_toml(path)["project"]["optional-dependencies"]
    if name not in extras:
        sys.exit(f"{path} has no extra of that name, only {', '.join(extras)}: {name}")
    print("\n".join(extras[name]))


if __name__ == "__main__":
    main()
