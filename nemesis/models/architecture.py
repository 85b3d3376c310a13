"""What a NEMESIS network is made of, as named values: paper, released code and MAESIL differ in nothing else.

Imports no torch: configurations are checked with it before anything heavy is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

Size = tuple[int, int, int]


def triple(size: Any) -> Size:
    """Voxels (D, H, W) from one number or three.

    Raises:
        ValueError: anything else.
    """
    if isinstance(size, Integral):
        size = (size,) * 3
    numbers: tuple[Any, ...] = tuple(size) if isinstance(size, Iterable) else ()
    if len(numbers) != 3 or not all(isinstance(n, Integral) and int(n) >= 1 for n in numbers):
        raise ValueError(f"{size!r} is not a size: one number of voxels, or three (D, H, W)")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


Gate = Literal["linear", "tokens"]
Streams = Literal["both", "plane", "axis", "joint"]
Merge = Literal["fc", "mean"]
Residual = Literal["input", "normalised"]
PositionScale = Literal["shared", "copied"]


@dataclass(frozen=True)
class Architecture:
    """Shape and variant of encoder and decoder; the defaults are the paper's (arXiv 2604.01612).

    Raises:
        ValueError: sizes that do not divide each other.
    """

    superpatch: Size  # voxels (D, H, W)
    patch: Size  # voxels (D, H, W) of a token
    channels: int = 1
    embed_dim: int = 768  # E
    depth: int = 6
    heads: int = 8  # of the encoder's blocks and of the token attention
    tokens: int = 8  # learnable NEMESIS tokens; 0: a plain linear embedding
    dropout: float = 0.1
    position_scale: float = 0.1  # start of pe_scale
    gate: Gate = "linear"  # the path that σ(α) weighs; the other one gets the rest
    gate_start: float = 0.0  # α
    streams: Streams = "both"  # attention within planes, along the axis, both, or jointly over all tokens
    merge: Merge = "fc"  # of the two streams: a linear layer on both, or their mean
    ffn_dim: int | None = None  # None: 4 × the block's width
    ffn_residual: Residual = "input"  # what the FFN is added to: its input before (pre-norm) or after the LayerNorm
    decoder_dim: int | None = 128  # None, or E itself: as wide as the encoder, without a projection
    decoder_depth: int = 3
    decoder_heads: int = 8
    decoder_position_scale: PositionScale = "shared"  # the encoder's own parameter, or a copy with a gradient of its own

    def __post_init__(self) -> None:
        by = "×".join
        least = {"channels": 1, "embed_dim": 1, "depth": 1, "heads": 1, "tokens": 0, "decoder_depth": 0, "decoder_heads": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} {getattr(self, name)} is less than {smallest}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")
        triple(self.superpatch), triple(self.patch)
        if any(s % p for s, p in zip(self.superpatch, self.patch, strict=True)):
            raise ValueError(f"superpatch {by(map(str, self.superpatch))} is not a multiple of patch {by(map(str, self.patch))}")
        if self.embed_dim % (max(self.tokens, 1) * self.heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by tokens × heads = {max(self.tokens, 1) * self.heads}"
            )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_dim {self.decoder_width} is not divisible by decoder_heads {self.decoder_heads}")

    @property
    def grid(self) -> Size:
        """Tokens along (D, H, W): T slices of h × w."""
        d, h, w = (s // p for s, p in zip(self.superpatch, self.patch, strict=True))
        return d, h, w

    @property
    def patch_voxels(self) -> int:
        """Numbers in a token: p_d · p_h · p_w · C."""
        return math.prod(self.patch) * self.channels

    @property
    def decoder_width(self) -> int:
        """Width of the decoder's tokens."""
        return self.decoder_dim or self.embed_dim


# where the released code and MAESIL's paper differ from the NEMESIS paper
OFFICIAL: dict[str, Any] = {
    "gate": "tokens",
    "gate_start": 0.5,
    "merge": "mean",
    "ffn_dim": 1024,
    "ffn_residual": "normalised",
    "decoder_dim": None,
    "decoder_position_scale": "copied",
}
MAESIL: dict[str, Any] = {"tokens": 0, "streams": "joint"}
