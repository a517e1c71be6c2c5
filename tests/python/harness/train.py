"""What the agents of the tests run: a loop of all_reduce over gloo that tells each step to a file, one JSON line each.

It ends when the file `--until` appears, agreed upon by all workers in the same step, or fails when one named after this
node does: `<until>.fail-<node>`. So a test decides when, and no worker waits for a clock.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=Path, required=True)
    parser.add_argument("--called", required=True)
    # How much later than the others this node's workers end.
    parser.add_argument("--linger-seconds", type=float, default=0.0)
    # How long this node's workers go on after SIGTERM, as those that write a checkpoint do.
    parser.add_argument("--stubborn-seconds", type=float, default=0.0)
    arguments = parser.parse_args()

    def end_slowly(*_: object) -> None:
        time.sleep(arguments.stubborn_seconds)
        os._exit(143)

    if arguments.stubborn_seconds:
        signal.signal(signal.SIGTERM, end_slowly)

    def tell(event: str, **more: object) -> None:
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

    # Before torch, whose import takes longer than all that the tests measure.
    tell("started")
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    tell("connected")
    told = False
    step = 0
    while True:
        stop = torch.tensor([1.0 if arguments.until.exists() else 0.0])
        try:
            dist.all_reduce(stop)
        except RuntimeError:
            # A peer's worker was stopped. This one's agent is about to stop it, too, and must not find it failed before.
            time.sleep(2)
            raise
        step += 1
        if Path(f"{arguments.until}.fail-{arguments.called}").exists():
            tell("failing", step=step)
            # At once: while an interpreter ends, a thread of gloo's that is still at work can turn the status into SIGABRT.
            os._exit(3)
        if not told:
            told = True
            tell("step", step=step)
        if stop.item() > 0:
            break
        time.sleep(0.01)
    tell("done", step=step)
    dist.destroy_process_group()
    time.sleep(arguments.linger_seconds)


if __name__ == "__main__":
    main()
