"""The Python versions that programs of tests run on: this one, and those that `LATTICE_TEST_PYTHONS` names.

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
    """What a test is called that runs on this interpreter: the folder that it is installed in."""
    return "this" if python == sys.executable else Path(python).parent.parent.name
