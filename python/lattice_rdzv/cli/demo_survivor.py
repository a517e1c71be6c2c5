"""The program of the demo's second part: it trains a small model, in the same process as long as it lives."""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from lattice_rdzv.torch import elastic

SAMPLES_PER_STEP = 64
STEP_SECONDS = 0.05
# Simulates the duration of real work. Without it, the demo would be too fast to follow.


def main() -> None:
    """Trains until the demo asks it to end."""
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = elastic.State(model=model, optimizer=optimizer)

    def train(world: elastic.World, ddp: nn.Module) -> None:
        while not is_enough(folder, world):
            world.begin_step()
            inputs = torch.rand(SAMPLES_PER_STEP, 1)
            loss = nn.functional.mse_loss(ddp(inputs), 3.0 * inputs - 1.0)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            state.advance(samples=SAMPLES_PER_STEP * world.size)
            report(folder, {"step": state.step, "size": world.size, "pid": os.getpid(), "at": time.monotonic()})
            time.sleep(STEP_SECONDS)

    with elastic.join(lease_ttl=3, settle_time=0.2, last_call_timeout=30, local_address="127.0.0.1") as job:
        job.run(state, train, build=lambda world: world.ddp(model))


def is_enough(folder: Path, world: elastic.World) -> bool:
    """Returns whether any process was asked to end, so that all of them end at one step."""
    asked = torch.tensor([float((folder / "enough").exists())])
    work = torch.distributed.all_reduce(asked, async_op=True)
    assert work is not None
    world.wait(work)
    return bool(asked > 0)


def report(folder: Path, event: dict[str, object]) -> None:
    """Appends an event in a single write, so that lines of several processes do not mix."""
    with (folder / "survivors.jsonl").open("a") as events:
        events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
