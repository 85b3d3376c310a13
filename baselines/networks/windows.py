"""Self-attention within local volumes of a grid of tokens, plain or shifted, and the transformer block around it.

Liu et al., Swin Transformer, arXiv 2103.14030, in three dimensions as nnFormer has it (arXiv 2109.03201): local (LV-MSA), shifted
(SLV-MSA), and global (GV-MSA) where a window holds the whole grid. Tokens are (B, D, H, W, C) throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn
from torch.nn import functional

from nemesis.models.architecture import Size


@dataclass(frozen=True)
class Windows:
    """A grid of tokens cut into windows, in tokens (D, H, W). The grid is padded at the far ends to whole windows, then moved by
    ``shift`` towards the near ends, where what falls off comes back at the far ends."""

    grid: Size
    window: Size
    shift: Size

    @classmethod
    def of(cls, grid: Size, edge: int, shifted: bool) -> Windows:
        """Windows of this edge; along an axis that is no longer than that, one window holds all of it and nothing is shifted."""
        window, shift = [], []
        for n in grid:
            window.append(min(n, edge))
            shift.append(edge // 2 if shifted and n > edge else 0)
        return cls(grid, (window[0], window[1], window[2]), (shift[0], shift[1], shift[2]))

    @property
    def counts(self) -> Size:
        """Windows along each axis."""
        d, h, w = (-(-n // edge) for n, edge in zip(self.grid, self.window, strict=True))
        return d, h, w

    @property
    def number(self) -> int:
        """Windows in all."""
        return math.prod(self.counts)

    @property
    def tokens(self) -> int:
        """Tokens in a window."""
        return math.prod(self.window)

    def split(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) → (B, windows, tokens, C)."""
        (d, h, w), (a, b, c) = self.counts, self.window
        missing = [n * edge - size for n, edge, size in zip(self.counts, self.window, self.grid, strict=True)]
        if any(missing):
            x = functional.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        if any(self.shift):
            x = x.roll([-s for s in self.shift], dims=(1, 2, 3))
        x = x.reshape(len(x), d, a, h, b, w, c, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return x.reshape(len(x), self.number, self.tokens, -1)

    def join(self, x: Tensor) -> Tensor:
        """What :meth:`split` did, undone: (B, windows, tokens, C) → (B, D, H, W, C)."""
        (d, h, w), (a, b, c) = self.counts, self.window
        x = x.reshape(len(x), d, h, w, a, b, c, -1).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), d * a, h * b, w * c, -1)
        if any(self.shift):
            x = x.roll(self.shift, dims=(1, 2, 3))
        return x[:, : self.grid[0], : self.grid[1], : self.grid[2]]

    def apart(self) -> Tensor | None:
        """(windows, tokens, tokens) bool, True for two tokens that share a window and are no neighbours: one came round from the
        grid's other end, or is padding. None where there are none."""
        if not any(self.shift) and self.grid == tuple(n * edge for n, edge in zip(self.counts, self.window, strict=True)):
            return None
        region = torch.zeros(1, 1, 1, dtype=torch.int64)
        for axis, (n, edge, size, shift) in enumerate(zip(self.counts, self.window, self.grid, self.shift, strict=True)):
            place = (torch.arange(n * edge) + shift) % (n * edge)  # before the shift
            kind = (place < shift).long() + 2 * (place >= size).long()  # came round; padding
            shape = [1, 1, 1]
            shape[axis] = -1
            region = 4 * region + kind.view(shape)
        moved = Windows((region.shape[0], region.shape[1], region.shape[2]), self.window, (0, 0, 0))
        regions = moved.split(region[None, ..., None])[0, :, :, 0]
        return regions[:, :, None] != regions[:, None, :]


def relative_places(window: Size) -> Tensor:
    """(tokens, tokens) int64: which of the (2a−1)(2b−1)(2c−1) offsets leads from one token of the window to the other."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :]
    number = torch.zeros_like(offsets[0])
    for offset, n in zip(offsets, window, strict=True):
        number = number * (2 * n - 1) + offset + n - 1
    return number


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learnt bias per head and relative position.

    With ``skip`` it is nnFormer's skip attention: keys and values are a linear projection of the encoder's tokens, and the
    decoder's tokens are the queries as they are.
    """

    def __init__(self, width: int, heads: int, windows: Windows, skip: bool = False) -> None:
        super().__init__()
        self.heads, self.windows = heads, windows
        self.projections = nn.Linear(width, (2 if skip else 3) * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty(math.prod(2 * n - 1 for n in windows.window), heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.places: Tensor
        self.apart: Tensor | None
        self.register_buffer("places", relative_places(windows.window), persistent=False)
        self.register_buffer("apart", windows.apart(), persistent=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Tokens x (B, D, H, W, C), and of skip attention those of the encoder at the same places."""
        projected = self.projections(x if memory is None else memory)
        projected = self.windows.split(projected if memory is None else torch.cat([x.to(projected.dtype), projected], dim=-1))
        batch, windows, tokens, _ = projected.shape
        queries, keys, values = projected.view(batch, windows, tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = functional.embedding(self.places, self.bias).permute(2, 0, 1).to(queries.dtype)
        # windows stand in the place of samples where all have one bias, in that of heads where each has a mask of its own: so the
        # bias is broadcast and never copied for every sample; only with four dimensions CPUs take the fast path
        first = 0
        if self.apart is not None:
            first = 1
            bias = torch.where(self.apart[:, None], -math.inf, bias).flatten(0, 1)
        q, k, v = (y.flatten(first, first + 1) for y in (queries, keys, values))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        attended = attended.view(batch, windows, self.heads, tokens, -1).transpose(2, 3).flatten(3)
        return self.out(self.windows.join(attended))


class Block(nn.Module):
    """x + attention(norm(x)), then + MLP(norm(·)); of skip attention the residual is the sum of both sides' tokens."""

    def __init__(self, width: int, heads: int, windows: Windows, skip: bool = False) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, windows, skip)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop_path = DropPath(0.0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Tokens (B, D, H, W, C); memory: the encoder's, normalised."""
        attended = self.attention(self.norm_attention(x), memory)
        x = (x if memory is None else x + memory) + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))
