"""Random numbers as a function of (seed, step, sample): no state, no order, the same on every device and any number of ranks.

Each number is a 64-bit counter passed through the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), computed for a whole batch at once on the device where it is needed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 1 << 64
_INCREMENT = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Keys:
    """The keys of a batch: seed and step as numbers, index (B,) int64 as each sample's place in the global batch."""

    seed: int
    step: int
    index: Tensor

    @classmethod
    def at(cls, seed: int, step: int, index: Sequence[int], device: torch.device | str = "cpu") -> Keys:
        """Keys of the samples at these places."""
        return cls(seed, step, torch.as_tensor(list(index), dtype=torch.int64, device=device))

    def uniform(self, stream: str, n: int) -> Tensor:
        """(B, n) float32 in [0, 1); another ``stream`` gives independent numbers."""
        return (self._bits(stream, n) >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def normal(self, stream: str, n: int) -> Tensor:
        """(B, n) float32, standard normal (Box–Muller)."""
        bits = self._bits(stream, n)
        radius = ((bits >> 40 & 0xFFFFFF) + 1).to(torch.float32) * 2.0**-24  # (0, 1]: its logarithm is finite
        angle = (bits >> 16 & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
        return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)

    def batch_choice(self, stream: str, n: int) -> int:
        """One of range(n), the same for every sample of the step."""
        return _mix_int(self._base(stream)) % n

    def _base(self, stream: str) -> int:
        return _mix_int(_mix_int(_mix_int(self.seed) + zlib.crc32(stream.encode())) + self.step)

    def _bits(self, stream: str, n: int) -> Tensor:
        sample = _mix(self.index + _signed(self._base(stream)))
        counter = torch.arange(1, n + 1, device=self.index.device, dtype=torch.int64) * _signed(_INCREMENT)
        return _mix(sample[:, None] + counter)


def seed_at(seed: int, step: int, rank: int) -> int:
    """A seed for torch's own generator, in which a library's dropout draws at this step on this rank."""
    return _mix_int(_mix_int(_mix_int(seed) + step) + rank)


def _signed(word: int) -> int:
    word %= _WORD
    return word - _WORD if word >= _WORD >> 1 else word


def _mix_int(word: int) -> int:
    word = (word + _INCREMENT) % _WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % _WORD
    return word ^ word >> 31


def _mix(words: Tensor) -> Tensor:
    # torch has no unsigned shift: the sign bits that an arithmetic shift drags in are masked off
    words = (words ^ (words >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return words ^ (words >> 31 & (1 << 33) - 1)
