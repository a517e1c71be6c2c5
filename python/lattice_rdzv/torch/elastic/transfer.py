"""Makes the state of all members of a world equal.

Each member reports its validity, its progress, and a hash. The most advanced valid member is the source, and equal progress
is not taken for equal content. If no member is behind and all hashes agree, nothing is sent. A receiver writes into new
tensors and takes the state over as a whole, or marks its state as invalid before the first byte (`State(in_place=True)`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from lattice_rdzv.torch.elastic.errors import StateLost
from lattice_rdzv.torch.elastic.hashing import as_bytes
from lattice_rdzv.torch.elastic.interrupt import Interrupt
from lattice_rdzv.torch.elastic.state import State, decode, encode, wanted_tensors

logger: logging.Logger = logging.getLogger("lattice_rdzv.torch")

# Small tensors are sent together, up to this many bytes.
_BUCKET_BYTES = 1 << 24


class Row(NamedTuple):
    """The report of one member about its state."""

    valid: int
    step: int
    samples: int
    first_hash: int
    second_hash: int


class Plan(NamedTuple):
    """Which member sends its state, and which receive it."""

    source: int
    receivers: list[int]


def plan(rows: Sequence[Row]) -> Plan | None:
    """Returns which members send and receive, or `None` if no member has a valid state. Pure."""
    valid = [rank for rank, row in enumerate(rows) if row.valid]
    if not valid:
        return None
    source = max(valid, key=lambda rank: (rows[rank].step, rows[rank].samples, -rank))
    receivers = [rank for rank, row in enumerate(rows) if row != rows[source]]
    return Plan(source, receivers)


def equalize(state: State, interrupt: Interrupt) -> None:
    """Makes the states of all members of the default group equal.

    Args:
        state: The state of this member.
        interrupt: The interrupt of the world.

    Raises:
        StateLost: No member has a valid state.
        WorldChanged: The world ended first.
        RuntimeError: A collective failed, or the states still differ afterwards.
    """
    rows = _gather(state, interrupt)
    planned = plan(rows)
    if planned is None:
        raise StateLost(
            f"none of the {len(rows)} members of this world has a valid state; load a checkpoint and call `State.restored`"
        )
    if not planned.receivers:
        return
    rank, (source, receivers) = dist.get_rank(), planned
    if rank in receivers:
        logger.info("receiving the state of step %d from rank %d", rows[source].step, source)
    _send(state, rows[source], interrupt, source=source, receives=rank in receivers)
    rows = _gather(state, interrupt)
    if len(set(rows)) != 1:
        different = [number for number, row in enumerate(rows) if row != rows[source]]
        raise RuntimeError(
            f"the states differ after rank {source} has sent its own; the ranks with other contents are: {different}; the "
            "parts of `State` must return from `state_dict` what they were given by `load_state_dict`"
        )


def _gather(state: State, interrupt: Interrupt) -> list[Row]:
    own = torch.tensor(state.row(), dtype=torch.int64)
    rows = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    interrupt.wait(_work(dist.all_gather(rows, own, async_op=True)))
    return [Row(*(int(value) for value in row)) for row in rows]


def _send(state: State, row: Row, interrupt: Interrupt, *, source: int, receives: bool) -> None:
    tree, tensors = state.parts()
    is_source = dist.get_rank() == source
    content = encode(tree) if is_source else b""
    length = torch.tensor([len(content)], dtype=torch.int64)
    interrupt.wait(_work(dist.broadcast(length, source, async_op=True)))
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8) if is_source else None
    if text is None:
        text = torch.empty(int(length), dtype=torch.uint8)
    interrupt.wait(_work(dist.broadcast(text, source, async_op=True)))
    if receives:
        tree = decode(text.numpy().tobytes())
        tensors = _targets(tree, tensors, in_place=state.in_place)
        if state.in_place:
            state.invalidate()
    for bucket in _buckets(tensors):
        packed = _pack(bucket) if is_source else _scratch(bucket, receives=receives)
        # A member that has the state already takes part, too, because a collective has all members of its group.
        interrupt.wait(_work(dist.broadcast(packed, source, async_op=True)))
        if receives and packed.data_ptr() != bucket[0].data_ptr():
            _unpack(packed, bucket)
    if receives:
        state.replace(tree, tensors, step=row.step, samples=row.samples)


def _targets(tree: object, own: list[torch.Tensor], *, in_place: bool) -> list[torch.Tensor]:
    """Returns the tensors to write into: those of this member where they fit, or new ones."""
    wanted = wanted_tensors(tree)
    targets = []
    for number, (dtype, shape) in enumerate(wanted):
        mine = own[number] if in_place and len(own) == len(wanted) else None
        fits = mine is not None and mine.dtype == dtype and tuple(mine.shape) == shape and mine.is_contiguous()
        targets.append(mine.detach() if fits and mine is not None else torch.empty(shape, dtype=dtype))
    return targets


def _buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields lists of tensors that are sent together. Depends only on their sizes, which are equal on all members."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        if bucket and _size(bucket) + _size([tensor]) > _BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _size(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _pack(bucket: list[torch.Tensor]) -> torch.Tensor:
    parts = [as_bytes(tensor).cpu() for tensor in bucket]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scratch(bucket: list[torch.Tensor], *, receives: bool) -> torch.Tensor:
    """Returns memory for a bucket: that of a large tensor itself, or new memory."""
    if receives and len(bucket) == 1 and bucket[0].device.type == "cpu":
        return as_bytes(bucket[0])
    return torch.empty(_size(bucket), dtype=torch.uint8)


def _unpack(packed: torch.Tensor, bucket: list[torch.Tensor]) -> None:
    start = 0
    for tensor in bucket:
        end = start + _size([tensor])
        # The bytes of one tensor may begin at an address that its type does not allow.
        tensor.copy_(packed[start:end].clone().view(tensor.dtype).reshape(tensor.shape))
        start = end


def _work(work: dist.Work | None) -> dist.Work:
    assert work is not None, "an asynchronous collective of a member returns its work"
    return work
