"""An elastic training script whose processes survive the loss of others. Replace the model, keep the rest.

    lattice-rdzv run --nproc-per-node 4 -- python examples/train/survive.py

When a process is lost, the others continue without a restart: they form a new group, and train with the state that they have.
A partial step is discarded, and `samples` counts only completed steps. Each process prints one line for each step.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lattice_rdzv.torch import elastic

LEARNING_RATE = 0.01
MOMENTUM = 0.5
SAMPLES = 64  # for each process and step
FEATURES = 8
NOISE = 0.1


def main() -> None:
    """Trains until the last step, in as many worlds as that takes."""
    arguments = parse()
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    state = elastic.State(model=model, optimizer=optimizer)

    def train(world: elastic.World, ddp: DistributedDataParallel) -> None:
        while state.step < arguments.steps:
            world.begin_step()  # a world may end here, to let new processes in or after SIGTERM
            inputs, targets = batch(state.step, world.rank)
            loss = nn.functional.mse_loss(ddp(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # if a process is lost, this raises, and the step is discarded
            optimizer.step()
            state.advance(samples=SAMPLES * world.size)
            say(
                f"step={state.step} world={world.round} rank={world.rank}/{world.size} pid={os.getpid()} "
                f"loss={loss.item():.3f} samples={state.samples}"
            )
            time.sleep(arguments.step_seconds)

    settings: Any = {key: number(value) for key, value in arguments.rdzv_conf}
    with elastic.join(arguments.run_id, nnodes=arguments.nnodes, endpoint=arguments.endpoint, **settings) as job:
        job.run(state, train, build=build(model), on_equal=lambda world: report(world, state))


def build(model: nn.Module) -> Callable[[elastic.World], DistributedDataParallel]:
    """Returns the function that creates the objects of one world. Groups and meshes belong here, too."""
    return lambda world: world.ddp(model)


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples depend only on step and rank, so a repeated step uses equal samples."""
    generator = torch.Generator().manual_seed(step * 100_003 + rank)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    return inputs, inputs.sum(dim=1, keepdim=True) + NOISE * torch.randn(SAMPLES, 1, generator=generator)


def report(world: elastic.World, state: elastic.State) -> None:
    """Prints the hash of the state, which is equal in all processes of a world."""
    say(
        f"world={world.round} rank={world.rank}/{world.size} pid={os.getpid()} step={state.step} "
        f"samples={state.samples} hash={state.digest()} why={world.why!r}"
    )


def parse() -> argparse.Namespace:
    """Parses the options. Kubernetes may pass them as variables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=int(os.environ.get("TRAIN_STEPS", "200")))
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=float(os.environ.get("TRAIN_STEP_SECONDS", "0.1")),
        help="as if the model were larger",
    )
    parser.add_argument("--run-id", default=None, help="name of the run (default: LATTICE_RDZV_ID)")
    parser.add_argument("--nnodes", default=None, help="number of processes, MIN:MAX (default: LATTICE_NNODES)")
    parser.add_argument("--endpoint", default=None, help="rendezvous service (default: LATTICE_RDZV_ENDPOINTS)")
    parser.add_argument(
        "--rdzv-conf",
        type=lambda text: [pair.split("=", 1) for pair in text.split(",") if pair],
        default=[],
        metavar="KEY=VALUE,...",
        help="further settings, as for torchrun, such as lease_ttl=2",
    )
    return parser.parse_args()


def number(text: str) -> str | float:
    """Returns a number if the text is one, or else the text."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def say(line: str) -> None:
    """Prints a line at once and in one write, so that the lines of several processes do not mix."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
