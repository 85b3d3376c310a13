"""From voxels to tokens: patches, the NEMESIS embedding, fixed positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nemesis.models.architecture import Architecture, Size
from nemesis.models.blocks import Attention


def patchify(volume: Tensor, patch: Size) -> Tensor:
    """(B, C, D, H, W) → (B, N, p_d, p_h·p_w·C); tokens in (D, H, W) order, voxels of a patch in (D, H, W, C) order."""
    batch, channels, *size = volume.shape
    t, h, w = (s // p for s, p in zip(size, patch, strict=True))
    x = volume.reshape(batch, channels, t, patch[0], h, patch[1], w, patch[2])
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, t * h * w, patch[0], patch[1] * patch[2] * channels)


def unpatchify(patches: Tensor, patch: Size, grid: Size, channels: int = 1) -> Tensor:
    """The inverse of :func:`patchify`; accepts (B, N, p_d·p_h·p_w·C) too."""
    batch = patches.shape[0]
    x = patches.reshape(batch, *grid, *patch, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(batch, channels, *(g * p for g, p in zip(grid, patch, strict=True)))


class NemesisEmbedding(nn.Module):
    """h = α·h_LP + (1 − α)·h_SE with α = σ(a) (arXiv 2604.01612); with ``gate: tokens``, as released, α weighs h_SE.

    h_LP maps all voxels of a patch linearly. h_SE maps each of its p_d slices to E/n_t numbers, appends n_t learnable NEMESIS
    tokens, lets all attend to each other, and joins the token rows.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        sub = a.embed_dim // a.tokens
        self.gate = a.gate
        self.linear = nn.Linear(a.patch_voxels, a.embed_dim)
        self.embed = nn.Linear(a.patch[1] * a.patch[2] * a.channels, sub)
        self.pos_embed = nn.Parameter(torch.randn(1, a.patch[0], sub) * 0.02)
        self.mt = nn.Parameter(torch.randn(1, a.tokens, sub) * 0.02)
        self.norm_qkv = nn.LayerNorm(sub)
        self.attn = Attention(sub, a.heads, a.dropout)
        self.proj = nn.Linear(sub, sub)
        self.alpha = nn.Parameter(torch.tensor(float(a.gate_start)))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, V, p_d, p_h·p_w·C) → (B, V, E)."""
        batch, visible = patches.shape[:2]
        slices = (self.embed(patches) + self.pos_embed).flatten(0, 1)
        rows = self.norm_qkv(torch.cat([slices, self.mt.expand(len(slices), -1, -1).to(slices.dtype)], dim=1))
        token_rows = self.proj(self.attn(rows)[:, patches.shape[2] :]).reshape(batch, visible, -1)
        linear, weight = self.linear(patches.flatten(2)), torch.sigmoid(self.alpha)
        return weight * linear + (1.0 - weight) * token_rows if self.gate == "linear" else torch.lerp(linear, token_rows, weight)


def sincos_positions(grid: Size, width: int) -> Tensor:
    """(N, width) fixed positions: per axis [sin | cos] over width//2 frequencies of period 10,000, a zero where the width is
    odd, joined in the order depth, height, width; height and width get ⌊width/3⌋ numbers each, depth the rest."""
    third = width // 3
    widths = (width - 2 * third, third, third)
    tables = [_axis_table(n, k) for n, k in zip(grid, widths, strict=True)]
    t, h, w = (torch.arange(n) for n in grid)
    tt, hh, ww = (axis.flatten() for axis in torch.meshgrid(t, h, w, indexing="ij"))
    return torch.cat([tables[0][tt], tables[1][hh], tables[2][ww]], dim=1)


def _axis_table(length: int, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / max(half, 1))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width - 2 * half))
