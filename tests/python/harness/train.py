"""The program of the agents in tests: a loop of steps that writes a JSON line for the first step of each world to a file.

It ends when the file `--until` appears, and fails when the file `<until>.fail-<node>` appears. Therefore the test decides when
this happens, independently of time. With `--gloo`, each step is an all_reduce of all workers, which then end in the same step.
Without it, a worker does not import torch, which takes seconds of a core for each worker at each restart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=Path, required=True)
    parser.add_argument("--called", required=True)
    parser.add_argument("--gloo", action="store_true")
    # The delay with which this node's workers end after the others.
    parser.add_argument("--linger-seconds", type=float, default=0.0)
    # The time that this node's workers continue after SIGTERM, as workers that write a checkpoint do.
    parser.add_argument("--stubborn-seconds", type=float, default=0.0)
    arguments = parser.parse_args()

    def end_slowly(*_: object) -> None:
        time.sleep(arguments.stubborn_seconds)
        os._exit(143)

    if arguments.stubborn_seconds:
        signal.signal(signal.SIGTERM, end_slowly)

    def report(event: str, **more: object) -> None:
        line = {
            "event": event,
            "node": arguments.called,
            "pid": os.getpid(),
            "rank": int(os.environ["RANK"]),
            "world": int(os.environ["WORLD_SIZE"]),
            "group_rank": int(os.environ["GROUP_RANK"]),
            "group_world": int(os.environ["GROUP_WORLD_SIZE"]),
            "restart_count": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
            "master_port": int(os.environ["MASTER_PORT"]),
            "at": time.monotonic(),
            **more,
        }
        # One write of less than a page, so that lines of several processes never mix.
        with arguments.out.open("a") as out:
            out.write(json.dumps(line) + "\n")

    # Before the import of torch, which takes longer than the times that the tests measure.
    report("started")
    is_over, leave = _together(arguments.until) if arguments.gloo else (arguments.until.exists, lambda: None)
    is_reported = False
    step = 0
    while True:
        stop = is_over()
        step += 1
        if Path(f"{arguments.until}.fail-{arguments.called}").exists():
            report("failing", step=step)
            # Without an orderly exit, during which a thread of gloo that is still working can change the status to SIGABRT.
            os._exit(3)
        if not is_reported:
            is_reported = True
            report("step", step=step)
        if stop:
            break
        time.sleep(0.05)
    report("done", step=step)
    leave()
    time.sleep(arguments.linger_seconds)


def _together(until: Path) -> tuple[Callable[[], bool], Callable[[], None]]:
    """Joins the process group. Returns a step of all workers, which says whether any of them knows the end, and what leaves."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    # One tensor for all steps. In torch 2.6, the process hangs at its end if a thread of gloo is the last owner of a tensor: the
    # destructor of the group waits for that thread, which waits for the GIL.
    stop = torch.zeros(1)

    def is_over() -> bool:
        stop.fill_(1.0 if until.exists() else 0.0)
        try:
            dist.all_reduce(stop)
        except RuntimeError:
            # The worker of a peer was stopped. This worker's agent is about to stop it, too, so it must not fail before that.
            time.sleep(60)
            raise
        return bool(stop.item() > 0)

    return is_over, dist.destroy_process_group


if __name__ == "__main__":
    main()
