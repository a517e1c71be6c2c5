"""The job that `lattice-rdzv demo` runs with torchrun: it fits a line by gradient descent over gloo.

It has the structure of any elastic job: after a change of the world, every worker restarts and continues from the last
checkpoint. Rank 0 reports events to the demo, one JSON object per line.
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
# Simulates the duration of real work. Without it, the demo would be too fast to follow.


def main() -> None:
    """Trains until the demo asks it to end."""
    folder = Path(sys.argv[1])
    node = int(os.environ["LATTICE_DEMO_NODE"])
    # Report first, before a call that waits for other workers, so that the demo can kill this worker at any time.
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
        # One all-reduce transfers the gradient, the loss, and the request to end, so that all ranks stop at one step.
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
    """Returns the step and the weights of the last checkpoint."""
    if not path.exists():
        return 0, torch.zeros(2)
    checkpoint = json.loads(path.read_text())
    return checkpoint["step"], torch.tensor(checkpoint["weights"])


def save(path: Path, step: int, weights: torch.Tensor) -> None:
    """Writes a checkpoint atomically, because a worker can be killed while it writes."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps({"step": step, "weights": [float(weight) for weight in weights]}))
    draft.replace(path)


def report(folder: Path, event: dict[str, object]) -> None:
    """Appends an event in a single write, so that lines of several processes do not mix."""
    with (folder / "events.jsonl").open("a") as events:
        events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
