"""The state that the members of a world have in common, and the progress of each member.

A state is a set of objects with `state_dict` and `load_state_dict`, and two counters. This module takes a state apart into
its tensors and the rest, and puts it together again. `transfer` sends it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from lattice_rdzv.torch.elastic.hashing import hash_state

_TENSOR = "__tensor__"
_NUMBERS_AND_TEXTS = (bool, int, float, str, bytes)


class Stateful(Protocol):
    """A model, an optimizer, a scheduler, or anything else with these two methods."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> object: ...


class State:
    """The state of the training in one process: its parts, and its progress.

        state = State(model=model, optimizer=optimizer)

    `Job.run` makes it equal on all members of a world before each call of the training function: the members whose progress
    is behind, or whose content differs, receive the state of the most advanced member. Each part must have
    `state_dict` and `load_state_dict`, with tensors, numbers, texts, lists, and dictionaries in it. Sharded tensors are not
    supported.
    """

    def __init__(self, *, in_place: bool = False, **parts: Stateful) -> None:
        """Creates a valid state without progress.

        Args:
            in_place: Whether a received state is written over the present one. This halves the memory that receiving needs,
                but a member that is interrupted meanwhile has no valid state any more. Default: false.
            parts: The objects by name, for example `model=model`. The names must be equal on all members.

        Raises:
            TypeError: A part has no `state_dict` or no `load_state_dict`.
        """
        for name, part in parts.items():
            if not callable(getattr(part, "state_dict", None)) or not callable(getattr(part, "load_state_dict", None)):
                raise TypeError(
                    f"`{name}` must have `state_dict` and `load_state_dict`, but is a `{type(part).__name__}`"
                )
        self._parts = parts
        self._in_place = in_place
        self._step = 0
        self._samples = 0
        self._valid = True
        # Called after each completed step. The job sets it while it runs.
        self._on_advance: Callable[[], object] | None = None

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self._step

    @property
    def samples(self) -> int:
        """Number of samples that the completed steps have used, on all members together."""
        return self._samples

    @property
    def valid(self) -> bool:
        """Whether this state may be sent to other members. False after receiving a state was interrupted."""
        return self._valid

    @property
    def in_place(self) -> bool:
        """Whether a received state is written over the present one."""
        return self._in_place

    def advance(self, *, samples: int, steps: int = 1) -> None:
        """Counts a completed step. Call it right after `optimizer.step()`.

        Args:
            samples: Number of samples of the step, on all members together.
            steps: Number of steps. Default: 1.

        Raises:
            ValueError: A number is negative.
        """
        if samples < 0 or steps < 0:
            raise ValueError(f"`samples` and `steps` must be 0 or more, but are {samples} and {steps}")
        self._step, self._samples = self._step + steps, self._samples + samples
        if self._on_advance is not None:
            self._on_advance()

    def restored(self, *, step: int, samples: int) -> None:
        """Sets the counters and marks the state as valid, after the program has loaded a checkpoint into the parts."""
        self._step, self._samples = step, samples
        self._valid = True

    def digest(self) -> str:
        """Returns a hash of the parts, as 32 hexadecimal digits. Equal states have equal hashes."""
        first, second = self._hash(self.parts())
        return f"{first % (1 << 64):016x}{second % (1 << 64):016x}"

    def discard_step(self) -> None:
        """Sets the gradients of all parts to `None`. After an interrupted step they are local and partly reduced."""
        for part in self._parts.values():
            if isinstance(part, (torch.nn.Module, torch.optim.Optimizer)):
                part.zero_grad(set_to_none=True)

    def parts(self) -> tuple[Any, list[torch.Tensor]]:
        """Returns the content as a tree without tensors, and the tensors.

        Raises:
            TypeError: A part contains an object that cannot be sent.
        """
        tensors: list[torch.Tensor] = []
        tree = {name: _take(part.state_dict(), name, tensors) for name, part in self._parts.items()}
        return tree, tensors

    def row(self) -> list[int]:
        """Returns what the members compare: validity, progress, and hash."""
        return [int(self._valid), self._step, self._samples, *self._hash(self.parts())]

    def invalidate(self) -> None:
        """Marks the state as incomplete, because it is about to be overwritten."""
        self._valid = False

    def replace(self, tree: Any, tensors: list[torch.Tensor], *, step: int, samples: int) -> None:
        """Replaces the whole state by a received one, and marks it as valid."""
        self._valid = False
        for name, part in self._parts.items():
            content = _put(tree[name], tensors)
            metadata = getattr(part.state_dict(), "_metadata", None)
            if metadata is not None:
                content = _WithMetadata(content)
                content._metadata = metadata
            part.load_state_dict(content)
        self.restored(step=step, samples=samples)

    def _hash(self, parts: tuple[Any, list[torch.Tensor]]) -> tuple[int, int]:
        tree, tensors = parts
        return hash_state(describe(tree), tensors)


class _WithMetadata(dict[str, Any]):
    """A dictionary with the versions of the modules, as the one that `Module.state_dict` returns."""

    _metadata: Any


def encode(tree: Any) -> bytes:
    """Serializes a tree without tensors."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def decode(content: bytes) -> Any:
    """Reads a tree of another member. Executes no code of it."""
    return torch.load(io.BytesIO(content), weights_only=True)


def describe(tree: Any) -> str:
    """Returns a text that is equal for equal trees. The order of a dictionary does not count, because loading changes it."""
    if isinstance(tree, dict):
        inside = sorted(f"{key!r}: {describe(value)}" for key, value in tree.items())
        return "{" + ", ".join(inside) + "}"
    if isinstance(tree, (list, tuple)):
        return "[" + ", ".join(describe(value) for value in tree) + "]"
    return repr(tree)


def wanted_tensors(tree: Any) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Returns type and shape of each tensor of a tree, in the order of their numbers."""
    found: dict[int, tuple[torch.dtype, tuple[int, ...]]] = {}

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if _TENSOR in part:
                found[part[_TENSOR]] = (part["dtype"], tuple(part["shape"]))
            else:
                for value in part.values():
                    look(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                look(value)

    look(tree)
    return [found[number] for number in range(len(found))]


def _take(part: Any, path: str, tensors: list[torch.Tensor]) -> Any:
    if isinstance(part, torch.Tensor):
        if hasattr(part, "to_local"):
            raise TypeError(
                f"`{path}` is sharded, and a shard is lost with its rank; keep a live replica (HSDP) in each world, or use "
                "checkpoints with torchrun"
            )
        tensors.append(part)
        return {_TENSOR: len(tensors) - 1, "dtype": part.dtype, "shape": list(part.shape)}
    if isinstance(part, Mapping):
        # In an order that is equal on all members.
        ordered = sorted(part.items(), key=lambda item: repr(item[0]))
        return {key: _take(value, f"{path}.{key}", tensors) for key, value in ordered}
    if isinstance(part, (list, tuple)):
        inside = [_take(value, f"{path}[{number}]", tensors) for number, value in enumerate(part)]
        return tuple(inside) if isinstance(part, tuple) else inside
    kind: Any
    for kind in _NUMBERS_AND_TEXTS:
        if isinstance(part, kind):
            # Of a subclass, such as NumPy's float64, the receiver would refuse the class.
            return kind(part)
    if part is None or isinstance(part, torch.dtype):
        return part
    raise TypeError(
        f"`{path}` cannot be sent to other members: it must consist of tensors, numbers, texts, lists and dictionaries, but "
        f"contains a `{type(part).__name__}`"
    )


def _put(part: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(part, dict):
        if _TENSOR in part:
            return tensors[part[_TENSOR]]
        return {key: _put(value, tensors) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        inside = [_put(value, tensors) for value in part]
        return tuple(inside) if isinstance(part, tuple) else inside
    return part
