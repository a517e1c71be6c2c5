"""The job that `lattice-rdzv demo` runs under torchrun: a line fitted by gradient descent over gloo.

It is written like any elastic job: after a change of the world every worker starts anew and goes on from the last
checkpoint. Rank 0 tells the demo what happened, one JSON object a line.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

LEARNING_RATE = 0.5
SAMPLES_PER_STEP = 64
STEP_SECONDS = 0.05
# Real work would take this long, and without it the story would be over before anybody could follow it.


def main() -> None:
    """Trains until the demo has seen enough."""
    folder = Path(sys.argv[1])
    node = int(os.environ["LATTICE_DEMO_NODE"])
    # Before anything that may wait for others: whoever is killed must be found.
    report(folder, {"event": "worker", "node": node, "pid": os.getpid()})
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, size = dist.get_rank(), dist.get_world_size()

    nodes = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(nodes, torch.tensor([node]))
    step, weights = restore(folder / "checkpoint.json")
    if rank == 0:
        by_rank = [int(member) for member in nodes]
        report(folder, {"event": "world", "by_rank": by_rank, "step": step, "port": os.environ["MASTER_PORT"]})

    generator = torch.Generator().manual_seed(1000 * step + rank)
    enough = False
    while not enough:
        inputs = torch.rand(SAMPLES_PER_STEP, generator=generator)
        error = weights[0] * inputs + weights[1] - (3.0 * inputs - 1.0)
        # The gradient, the loss, and whether the demo has seen enough, in one exchange: all ranks must stop together.
        asked_to_end = float((folder / "enough").exists())
        shared = torch.stack([(error * inputs).mean(), error.mean(), (error**2).mean(), torch.tensor(asked_to_end)])
        dist.all_reduce(shared)
        weights -= LEARNING_RATE * shared[:2] / size
        step += 1
        enough = bool(shared[3] > 0)
        if rank == 0 and (step % 20 == 0 or enough):
            save(folder / "checkpoint.json", step, weights)
            report(folder, {"event": "step", "step": step, "loss": round(float(shared[2]) / size, 5), "nodes": size})
        time.sleep(STEP_SECONDS)
    dist.destroy_process_group()


def restore(path: Path) -> tuple[int, torch.Tensor]:
    """The step and the weights of the last checkpoint."""
    if not path.exists():
        return 0, torch.zeros(2)
    checkpoint = json.loads(path.read_text())
    return checkpoint["step"], torch.tensor(checkpoint["weights"])


def save(path: Path, step: int, weights: torch.Tensor) -> None:
    """Whole or not at all: a worker may be killed while it writes."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps({"step": step, "weights": [float(weight) for weight in weights]}))
    draft.replace(path)


def report(folder: Path, event: dict[str, object]) -> None:
    """One line in one write, so that the lines of several processes do not mix."""
    with (folder / "events.jsonl").open("a") as events:
        events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
