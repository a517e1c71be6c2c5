"""Reads values of torch's launcher that it does not pass to a rendezvous handler.

Problem: `RendezvousParameters` contains neither whether the launcher generated the run id, nor `--node-rank`, which is 0
by default on every node. Design: while the launcher creates the handler, its functions are on the stack of this thread,
and their local variables have both. Other ways of starting a job are not affected.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_LAUNCHER = "/torch/distributed/launcher/api.py"
_TORCHRUN = "/torch/distributed/run.py"

# argparse accepts each beginning of an option that is unique.
_NODE_RANK = "--node-rank"
_SHORTEST = "--node-"


def drew_run_id(run_id: str) -> bool:
    """Returns whether torch's launcher generated this id because the passed id is empty.

    The id itself does not show this, because a user can also pass a number.
    """
    variables = _variables_of(_LAUNCHER, "launch_agent")
    return variables is not None and variables.get("run_id") == run_id


def is_torchrun() -> bool:
    """Returns whether torchrun is the program that creates the handler, and not a program that calls torch's launcher."""
    return _variables_of(_TORCHRUN, "run") is not None


def node_rank() -> int | None:
    """Returns torchrun's `--node-rank`, or `None` if it is not on the command line."""
    arguments = (_variables_of(_TORCHRUN, "run") or {}).get("args")
    script = [getattr(arguments, "training_script", None), *getattr(arguments, "training_script_args", ())]
    # Some versions of argparse remove `--`.
    script, line = ([text for text in texts if text != "--"] for texts in (script, sys.argv[1:]))
    if line[-len(script) :] != script:
        # A program called torchrun's `main` with another list of arguments.
        return None
    options = (argument.partition("=")[0].replace("_", "-") for argument in line[: -len(script)])
    passed = any(option.startswith(_SHORTEST) and _NODE_RANK.startswith(option) for option in options)
    return getattr(arguments, "node_rank", None) if passed else None


def _variables_of(file: str, function: str) -> Mapping[str, Any] | None:
    """Returns the local variables of the innermost call of a function on this thread's stack."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return frame.f_locals
    return None
