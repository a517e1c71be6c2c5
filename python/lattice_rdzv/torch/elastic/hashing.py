"""A hash of a state, to find out whether the members of a world have equal states.

Not cryptographic: it has to differ for states that differ by accident. It reads each tensor once, on the device where the
tensor is, as a sum of its words with an odd factor for each position, so that one changed word always changes the sum.
"""

from __future__ import annotations

import hashlib

import torch

# Bytes of a tensor that are multiplied at once, which limits the extra memory.
_CHUNK_BYTES = 1 << 25
_FACTOR = 0x5851F42D4C957F2D


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the content of a tensor as a vector of `uint8`, without a copy if the tensor is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def hash_tensor(tensor: torch.Tensor) -> int:
    """Returns a 64-bit number that depends on each byte of the tensor and on its position."""
    content = as_bytes(tensor)
    total = content.numel()
    for start in range(0, content.numel(), _CHUNK_BYTES):
        chunk = content[start : start + _CHUNK_BYTES]
        padding = -chunk.numel() % 8
        if padding:
            chunk = torch.nn.functional.pad(chunk, (0, padding))
        # A chunk may begin at an address that 8 does not divide.
        words = chunk.clone().view(torch.int64)
        positions = torch.arange(words.numel(), dtype=torch.int64, device=words.device) * 2 + 1
        # Arithmetic of integers wraps around.
        total = (total * _FACTOR + int((words * positions).sum())) % (1 << 64)
    return total


def hash_state(shape: str, tensors: list[torch.Tensor]) -> tuple[int, int]:
    """Returns the hash of a state, as two signed 64-bit numbers.

    Args:
        shape: Text that describes everything but the contents of the tensors.
        tensors: The tensors, in the order of that text.
    """
    digest = hashlib.blake2b(shape.encode(), digest_size=16)
    for tensor in tensors:
        digest.update(hash_tensor(tensor).to_bytes(8, "little"))
    content = digest.digest()
    return int.from_bytes(content[:8], "little", signed=True), int.from_bytes(content[8:], "little", signed=True)
