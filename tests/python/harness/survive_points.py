"""Runs `examples/train/survive.py` in a process that does something at a point of its loop.

`SURVIVE_POINT` names the point, and `SURVIVE_ACTION` the action, which happens once: `kill` (SIGKILL of the process itself), or
`sleep:SECONDS`. If `SURVIVE_FILE` is set, the action happens when this file exists, in the process that deletes it first. The
product has no such points, so this module wraps its functions.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lattice_rdzv._run import Run
from lattice_rdzv.torch.elastic import gloo, state, store, transfer, world

POINT = os.environ["SURVIVE_POINT"]
FILE = os.environ.get("SURVIVE_FILE")
ACTION = os.environ.get("SURVIVE_ACTION", "kill")
# The first step in which points inside of a step have an effect.
STEP = int(os.environ.get("SURVIVE_STEP", "5"))

current = {"steps": 0, "done": 0}


def act() -> None:
    if current["done"]:
        return
    if FILE:
        try:
            Path(FILE).unlink()
        except FileNotFoundError:
            return
    current["done"] = 1
    os.write(1, f"point {POINT}\n".encode())
    if ACTION == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(ACTION.partition(":")[2]))


def before(owner: Any, name: str, *, when: Callable[[], bool] = lambda: True) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when():
            act()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def in_step() -> bool:
    current["steps"] += 1
    return current["steps"] > STEP


match POINT:
    case "seek":
        before(Run, "next_world")
    case "form":
        # After its address was put, so that the others try to connect.
        before(store.WorldStore, "_wait")
    case "before-form":
        before(gloo.GlooGroup, "form")
    case "first-collective":
        before(transfer, "_gather")
    case "send":
        before(transfer, "_pack")
    case "receive":
        before(transfer, "_scratch")
    case "ddp":
        before(torch.nn.parallel.distributed, "_sync_module_states")
    case "backward":
        before(dist, "all_reduce", when=in_step)
    case "optimizer":
        before(torch.optim.SGD, "step", when=in_step)
    case "advance":
        before(state.State, "advance", when=in_step)
    case "begin-step":
        before(world.World, "begin_step", when=in_step)
    case _:
        raise SystemExit(f"there is no point `{POINT}`")

script = Path(__file__).parents[3] / "examples/train/survive.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
