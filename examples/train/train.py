"""A training script for elastic jobs: a small model, DistributedDataParallel, checkpoints. Replace the model, keep the rest.

Every worker restarts when the world changes, so state that must survive is in a checkpoint. Each node keeps its own
copy. At the start, all nodes receive the newest checkpoint that any node has. This works for a new node with an empty
folder, and for a folder that all nodes share.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LEARNING_RATE = 0.01
MOMENTUM = 0.5
SAMPLES = 64
FEATURES = 8
NOISE = 0.1


def main() -> None:
    """Trains until the last step."""
    arguments = parse()
    gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    who = f"rank {rank} of {size} on {os.uname().nodename}"

    torch.manual_seed(0)
    model = nn.Linear(FEATURES, 1).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    first_step = restore(arguments.checkpoint, model, optimizer, device)
    wrapped = DistributedDataParallel(model)
    say(f"{who}: starts after step {first_step}, to do {arguments.steps}")

    for step in range(first_step + 1, arguments.steps + 1):
        # The samples depend only on step and rank, so a repeated step uses equal samples.
        generator = torch.Generator().manual_seed(step * 100_003 + rank)
        inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
        targets = inputs.sum(dim=1, keepdim=True) + NOISE * torch.randn(SAMPLES, 1, generator=generator)
        loss = nn.functional.mse_loss(wrapped(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()  # here the ranks exchange their gradients
        optimizer.step()
        if step % arguments.every == 0 or step == arguments.steps:
            if local_rank == 0:
                save(arguments.checkpoint, step, model, optimizer)
            if rank == 0:
                say(f"{who}: step {step}, loss {loss.item():.4f}")
        time.sleep(arguments.step_seconds)

    # No worker leaves before all are done, because the others would lose a peer.
    dist.barrier()
    say(f"{who}: done after step {arguments.steps}")
    dist.destroy_process_group()


def parse() -> argparse.Namespace:
    """Parses the options. Kubernetes may pass them as variables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=int(os.environ.get("TRAIN_STEPS", "200")))
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=float(os.environ.get("TRAIN_STEP_SECONDS", "0.1")),
        help="as if the model were larger",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(os.environ.get("TRAIN_CHECKPOINT", "checkpoint.pt")),
        help="checkpoint file",
    )
    return parser.parse_args()


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Restores the newest checkpoint of all nodes on each of them. Returns its step, or 0 if there is none."""
    own = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    steps = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(steps, torch.tensor([own["step"] if own else 0], device=device))
    newest = max(int(step) for step in steps)
    if newest == 0:
        return 0
    source = next(rank for rank, step in enumerate(steps) if int(step) == newest)
    box = [own]
    dist.broadcast_object_list(box, src=source, device=device)
    checkpoint = box[0]
    assert checkpoint is not None
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return newest


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Saves a checkpoint atomically: a worker may be stopped while it writes, and several agents may write to one folder."""
    draft = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, draft)
    draft.replace(path)


def say(line: str) -> None:
    """Prints a line without buffering, so that the log of a killed pod is complete."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
