"""The released NEMESIS network as one would write it down: what the suite's own is timed against.

``nn.MultiheadAttention`` for every attention, fp32, masks drawn sample by sample and slice by slice. Parameters are named as in
the released checkpoints, so both networks load the same weights, and tests/unit/test_benchmarks.py shows that they agree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nemesis.models.architecture import Architecture, Size
from nemesis.models.embedding import patchify, sincos_positions
from nemesis.models.masking import Masking, visible_count


class PlainEmbedding(nn.Module):
    """Patches (B, V, p_d, p_h·p_w) → (B, V, E)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        sub = a.embed_dim // a.tokens
        self.linear = nn.Linear(a.patch_voxels, a.embed_dim)
        self.embed = nn.Linear(a.patch_voxels // a.patch[0], sub)
        self.pos_embed = nn.Parameter(torch.zeros(1, a.patch[0], sub))
        self.mt = nn.Parameter(torch.zeros(1, a.tokens, sub))
        self.norm_qkv = nn.LayerNorm(sub)
        self.attn = nn.MultiheadAttention(sub, a.heads, dropout=a.dropout, batch_first=True)
        self.proj = nn.Linear(sub, sub)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, patches: Tensor) -> Tensor:
        batch, visible, slices, _ = patches.shape
        rows = (self.embed(patches) + self.pos_embed).flatten(0, 1)
        rows = self.norm_qkv(torch.cat([rows, self.mt.expand(len(rows), -1, -1)], dim=1))
        rows = self.proj(self.attn(rows, rows, rows)[0])
        tokens = rows[:, slices:].reshape(batch, visible, -1)
        alpha = torch.sigmoid(self.alpha)
        return (1 - alpha) * self.linear(patches.flatten(2)) + alpha * tokens


class PlainBlock(nn.Module):
    """(B, T, n, E) → (B, T, n, E)."""

    def __init__(self, width: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.spatial_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.depth_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn_dim, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, e = x.shape
        y = self.norm1(x)
        planes = y.reshape(b * t, n, e)
        columns = y.transpose(1, 2).reshape(b * n, t, e)
        plane = self.spatial_attn(planes, planes, planes)[0].reshape(b, t, n, e)
        axis = self.depth_attn(columns, columns, columns)[0].reshape(b, n, t, e).transpose(1, 2)
        y = self.norm2(x + 0.5 * (plane + axis))
        return y + self.ffn(y)


class PlainEncoder(nn.Module):
    """Visible patches and their token numbers (B, T, n) → tokens (B, T, n, E)."""

    positions: Tensor

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.pe_scale = nn.Parameter(torch.tensor(0.1))
        self.adaptive_agg = PlainEmbedding(a)
        self.blocks = nn.ModuleList(PlainBlock(a.embed_dim, a.heads, a.ffn_dim or 1024, a.dropout) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.embed_dim)
        self.register_buffer("positions", sincos_positions(a.grid, a.embed_dim), persistent=False)

    def forward(self, patches: Tensor, keep: Tensor) -> Tensor:
        places = keep.flatten(1)
        visible = patches.gather(1, places[:, :, None, None].expand(-1, -1, *patches.shape[2:]))
        x = (self.adaptive_agg(visible) + self.pe_scale * self.positions[places]).view(*keep.shape, -1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainDecoder(nn.Module):
    """Tokens in their places, mask tokens elsewhere → voxels (B, N, p_d·p_h·p_w)."""

    positions: Tensor

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.grid = a.grid
        self.pe_scale = nn.Parameter(torch.tensor(0.1))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, a.embed_dim))
        self.blocks = nn.ModuleList(
            PlainBlock(a.embed_dim, a.decoder_heads, a.ffn_dim or 1024, a.dropout) for _ in range(a.decoder_depth)
        )
        self.norm = nn.LayerNorm(a.embed_dim)
        self.head = nn.Linear(a.embed_dim, a.patch_voxels)
        self.register_buffer("positions", sincos_positions(a.grid, a.embed_dim), persistent=False)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        visible = tokens.flatten(1, 2)
        x = self.mask_token.expand(len(visible), math.prod(self.grid), -1)
        x = x.scatter(1, keep.flatten(1)[:, :, None].expand(-1, -1, visible.shape[-1]), visible)
        x = (x + self.pe_scale * self.positions).view(len(visible), self.grid[0], -1, visible.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(1, 2)


class PlainMAE(nn.Module):
    """Encoder and decoder of the official preset, with NEMESIS tokens."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.patch, self.grid = a.patch, a.grid
        self.encoder, self.decoder = PlainEncoder(a), PlainDecoder(a)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) and visible token numbers (B, T, n) → mean squared error on the hidden patches."""
        target = patchify(x, self.patch)
        with torch.no_grad():  # as released: before every forward pass
            self.decoder.pe_scale.data = self.encoder.pe_scale.data.clone()
        prediction = self.decoder(self.encoder(target, keep), keep)
        error = (prediction - target.flatten(2)).pow(2).mean(dim=2)
        hidden = torch.ones_like(error).scatter(1, keep.flatten(1), 0.0)
        return (error * hidden).sum() / hidden.sum() if hidden.sum() > 0 else error.mean()

    def embed(self, x: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) → mean over the final tokens (B, E), nothing masked."""
        slices, columns = self.grid[0], self.grid[1] * self.grid[2]
        keep = torch.arange(slices * columns, device=x.device).view(1, slices, columns).expand(len(x), -1, -1)
        return self.encoder(patchify(x, self.patch), keep).mean(dim=(1, 2))


def masks_by_loop(grid: Size, masking: Masking, batch: int) -> Tensor:
    """Visible token numbers (B, T, n): positions once per sample, thinned afresh in each slice."""
    slices, columns = grid[0], grid[1] * grid[2]
    n_columns = visible_count(columns, masking.plane_ratio)
    n = visible_count(n_columns, masking.axis_ratio)
    keep = torch.empty(batch, slices, n, dtype=torch.int64)
    for sample in range(batch):
        positions = torch.randperm(columns)[:n_columns]
        for t in range(slices):
            keep[sample, t] = positions[torch.randperm(n_columns)[:n]].sort().values + t * columns
    return keep
