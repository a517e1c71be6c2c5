"""The Python versions that run the programs of tests: this one, and those in `LATTICE_TEST_PYTHONS`.

The package is built once for all versions (abi3), so another interpreter imports the package of this one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lattice_rdzv

PACKAGES = Path(lattice_rdzv.__file__).parent.parent
PYTHONS = [sys.executable, *filter(None, os.environ.get("LATTICE_TEST_PYTHONS", "").split(":"))]


def name(python: str) -> str:
    """Returns the name of an interpreter in test ids, which is the folder of its installation."""
    return "this" if python == sys.executable else Path(python).parent.parent.name
