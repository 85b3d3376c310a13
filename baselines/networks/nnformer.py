"""nnFormer (arXiv 2109.03201), in parts: an encoder that pretrains on hidden units, and a decoder that segments.

Tokens are (B, D, H, W, C). At the authors' Synapse configuration (crop 64×128×128, width 192, patch 2×4×4) the stages hold 192
numbers at 32³ places, 384 at 16³, 768 at 8³ and 1,536 at 4³.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from baselines.networks.nnformer_shape import Shape
from baselines.networks.windows import Block, Windows
from nemesis.models.architecture import Size
from nemesis.models.heads import start_rare

RESOLUTIONS = 3  # that deep supervision looks at


class Stage(nn.Module):
    """The blocks of a stage: every second one is shifted, the first of the decoder's attends to the encoder (``skip``)."""

    def __init__(self, shape: Shape, stage: int, skip: bool = False) -> None:
        super().__init__()
        grid, edge = shape.grid(stage), shape.windows[stage]
        width, heads = shape.widths[stage], shape.heads[stage]
        self.blocks = nn.ModuleList(
            Block(width, heads, Windows.of(grid, edge, shifted=number % 2 == 1), skip=skip and number == 0)
            for number in range(shape.depths[stage])
        )

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Tokens of the stage, and of the decoder's those of the encoder, normalised."""
        for block in self.blocks:
            x, memory = block(x, memory), None
        return x

    def drop_paths(self, rates: Sequence[float]) -> None:
        """Leave out residual branches in training, in this share of samples by block."""
        for block, rate in zip(self.blocks, rates, strict=True):
            cast(Block, block).drop_path.drop_prob = rate


class Convolution(nn.Module):
    """A convolution, by default 3³, of tokens."""

    def __init__(self, channels: int, width: int, stride: Size = (1, 1, 1)) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, width, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) → (B, D / stride, …, width)."""
        return self.convolution(x.movedim(-1, 1)).movedim(1, -1)


class Expanding(nn.Module):
    """A transposed convolution of tokens whose kernel is its stride."""

    def __init__(self, width: int, channels: int, stride: Size) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose3d(width, channels, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) → (B, D · stride, …, channels)."""
        return self.convolution(x.movedim(-1, 1)).movedim(1, -1)


def embedding(patch: Size, width: int) -> nn.Sequential:
    """Voxels as tokens (B, D, H, W, 1) → tokens of the first stage: four convolutions, GELU and LayerNorm after all but the last,
    whose output is normalised (section 3.1). The first and the third step by 1 or 2, together by the patch."""
    half = width // 2
    first = tuple(min(edge, 2) for edge in patch)
    second = tuple(edge // step for edge, step in zip(patch, first, strict=True))
    return nn.Sequential(
        Convolution(1, half, (first[0], first[1], first[2])),
        nn.GELU(),
        nn.LayerNorm(half),
        Convolution(half, half),
        nn.GELU(),
        nn.LayerNorm(half),
        Convolution(half, width, (second[0], second[1], second[2])),
        nn.GELU(),
        nn.LayerNorm(width),
        Convolution(width, width),
        nn.LayerNorm(width),
    )


def merging(width: int) -> nn.Sequential:
    """Tokens (B, D, H, W, C) → (B, D/2, H/2, W/2, 2C)."""
    return nn.Sequential(nn.GELU(), nn.LayerNorm(width), Convolution(width, 2 * width, (2, 2, 2)))


class Encoder(nn.Module):
    """From voxels to the tokens of every stage."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = embedding(shape.patch, shape.width)
        self.stages = nn.ModuleList(Stage(shape, stage) for stage in range(shape.stages))
        self.merging = nn.ModuleList(merging(width) for width in shape.widths[:-1])
        self.norm = nn.LayerNorm(shape.widths[-1])

    def forward(self, voxels: Tensor, hidden: Tensor | None = None, replacement: Tensor | None = None) -> list[Tensor]:
        """Voxels (B, 1, D, H, W) → tokens of each stage, those of the last normalised.

        Args:
            hidden: (B, d, h, w) bool per token of the last stage: the voxels there count as 0.
            replacement: (width,): what stands for the embeddings there.
        """
        if hidden is not None:
            voxels = voxels.masked_fill(enlarged(hidden, self.shape.unit)[:, None], 0.0)
        x = self.embedding(voxels.movedim(1, -1))
        if hidden is not None and replacement is not None:
            times = 2 ** (self.shape.stages - 1)
            x = torch.where(enlarged(hidden, (times, times, times))[..., None], replacement.to(x.dtype), x)
        tokens = []
        for number, stage in enumerate(self.stages):
            x = stage(self.merging[number - 1](x) if number else x)
            tokens.append(x)
        return [*tokens[:-1], self.norm(x)]


def enlarged(x: Tensor, times: Size) -> Tensor:
    """(B, d, h, w) → (B, d · times, …), every value repeated along the three axes."""
    for axis, n in enumerate(times, start=1):
        x = x.repeat_interleave(n, dim=axis)
    return x


class MaskedNnFormer(nn.Module):
    """The encoder, told nothing of its hidden units, and a 1×1×1 convolution from its last stage to the voxels of every unit."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.replacement = nn.Parameter(torch.empty(shape.width))
        nn.init.normal_(self.replacement, std=0.02)
        self.head = nn.Conv3d(shape.widths[-1], math.prod(shape.unit), 1)

    def forward(self, voxels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Voxels (B, 1, D, H, W), hidden (B, d, h, w) bool per unit → what the voxels are taken for, of the same shape."""
        tokens = self.encoder(voxels, hidden, self.replacement)[-1]
        a, b, c = self.encoder.shape.unit
        said = self.head(tokens.movedim(-1, 1))
        batch, _, d, h, w = said.shape
        return said.view(batch, a, b, c, d, h, w).permute(0, 4, 1, 5, 2, 6, 3).reshape(batch, 1, d * a, h * b, w * c)


class Level(nn.Module):
    """A stage of the decoder: the coarser tokens are expanded and look, window by window, into the encoder's."""

    def __init__(self, shape: Shape, stage: int) -> None:
        super().__init__()
        width = shape.widths[stage]
        self.expanding = nn.Sequential(nn.LayerNorm(2 * width), Expanding(2 * width, width, (2, 2, 2)))
        self.norm_skip = nn.LayerNorm(width)
        self.stage = Stage(shape, stage, skip=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Tokens of the coarser stage, and the encoder's of this one."""
        return self.stage(self.expanding(x), self.norm_skip(skip))


class NnFormer(nn.Module):
    """The whole network: an encoder, taken over with its weights, and a new decoder.

    Args:
        drop_path: share of samples in which a residual branch is left out in training: rising from 0 in the first block of the
            encoder to this in its last, and so in the decoder by resolution.
    """

    def __init__(self, encoder: Encoder, classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
        shape = encoder.shape
        self.encoder = encoder
        self.levels = nn.ModuleList(Level(shape, stage) for stage in range(shape.stages - 1))
        supervised = range(min(RESOLUTIONS, max(1, shape.stages - 1)))
        self.heads = nn.ModuleList(Expanding(shape.widths[stage], classes, shape.patch) for stage in supervised)
        for head in self.heads:
            start_rare(cast(Expanding, head).convolution)
        rates = torch.linspace(0, drop_path, sum(shape.depths), device="cpu")
        for number, of_stage in enumerate(torch.split(rates, list(shape.depths))):
            cast(Stage, encoder.stages[number]).drop_paths(of_stage.tolist())
            if number < len(self.levels):
                cast(Level, self.levels[number]).stage.drop_paths(of_stage.tolist())

    def forward(self, voxels: Tensor) -> Tensor | list[Tensor]:
        """Voxels (B, 1, D, H, W) → logits (B, classes, D, H, W); in training a list, at full, half and quarter resolution."""
        tokens = self.encoder(voxels)
        x, decoded = tokens[-1], [tokens[-1]]
        for level, skip in zip(reversed(self.levels), reversed(tokens[:-1]), strict=True):
            x = level(x, skip)
            decoded.insert(0, x)
        heads = self.heads if self.training else self.heads[:1]
        logits = [head(x).movedim(-1, 1) for head, x in zip(heads, decoded, strict=False)]
        return logits if self.training else logits[0]
