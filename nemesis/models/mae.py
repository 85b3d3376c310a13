"""The NEMESIS masked autoencoder: encoder over the visible tokens, light decoder over all of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nemesis.models.blocks import MultiAxisBlock, initialise
from nemesis.models.embedding import NemesisEmbedding, Size, patchify, sincos_positions, unpatchify
from nemesis.models.masking import Mask, nothing_masked


class Encoder(nn.Module):
    """Visible patches → tokens; positions are fixed sines and cosines times the learnable ``pe_scale``."""

    positions: Tensor

    def __init__(
        self, superpatch: Size, patch: Size, embed_dim: int, depth: int, heads: int, tokens: int, dropout: float,
        position_scale: float = 0.1, channels: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch = patch
        self.grid: Size = (superpatch[0] // patch[0], superpatch[1] // patch[1], superpatch[2] // patch[2])
        self.pe_scale = nn.Parameter(torch.tensor(position_scale))
        self.adaptive_agg = NemesisEmbedding(patch, channels, embed_dim, heads, tokens, dropout)
        self.blocks = nn.ModuleList(MultiAxisBlock(embed_dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.register_buffer("positions", sincos_positions(self.grid, embed_dim), persistent=False)
        initialise(self)

    def forward(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Visible patches (B, T'·n, p_d, p_h·p_w·C) and their token numbers (B, T', n) → tokens (B, T', n, E)."""
        x = self.adaptive_agg(patches) + self.pe_scale * self.positions[keep.flatten(1)]
        x = x.view(*keep.shape, -1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, voxels: Tensor) -> Tensor:
        """Superpatches (B, C, D, H, W) → the mean over their final tokens (B, E), nothing masked."""
        keep = nothing_masked(self.grid, len(voxels), voxels.device).keep
        return self(patchify(voxels, self.patch), keep).mean(dim=(1, 2))


class Decoder(nn.Module):
    """Mask tokens everywhere, the visible tokens in their places, positions added, blocks on the full grid, voxels out."""

    positions: Tensor

    def __init__(
        self,
        grid: Size,
        patch: Size,
        embed_dim: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(MultiAxisBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, math.prod(patch) * channels)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are near zero, not noise

    def forward(self, tokens: Tensor, mask: Mask, pe_scale: Tensor) -> Tensor:
        """Tokens (B, T', n, E) → voxels of every patch (B, N, p_d·p_h·p_w·C)."""
        visible = self.embed(tokens.flatten(1, 2))
        batch, width = len(visible), visible.shape[-1]
        places = mask.keep.flatten(1)[:, :, None].expand(-1, -1, width)
        x = visible.new_zeros(batch, math.prod(self.grid), width).scatter(1, places, visible)
        x = torch.where(mask.hidden[:, :, None], self.mask_token.to(x.dtype), x) + pe_scale * self.positions
        x = x.view(batch, self.grid[0], -1, width)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(1, 2)


class MaskedOutput(NamedTuple):
    """loss, full_mse: scalars; prediction (B, N, p_d·p_h·p_w·C)."""

    loss: Tensor
    full_mse: Tensor
    prediction: Tensor


class MaskedAutoencoder(nn.Module):
    """NEMESIS: mean squared error on the masked patches of the clean volume (arXiv 2604.01612)."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, voxels: Tensor, mask: Mask, noise: Tensor | None = None) -> MaskedOutput:
        """Clean voxels (B, C, D, H, W), what to hide, and noise (B, V, p_d, p_h·p_w·C) for the visible patches.

        Where nothing is hidden the loss covers the whole volume.
        """
        target = patchify(voxels, self.encoder.patch)
        places = mask.keep.flatten(1)
        visible = target.gather(1, places[:, :, None, None].expand(-1, -1, *target.shape[2:]))
        tokens = self.encoder(visible if noise is None else visible + noise, mask.keep)
        prediction = self.decoder(tokens, mask, self.encoder.pe_scale).float()
        per_patch = (prediction - target.flatten(2)).square().mean(dim=2)
        full = per_patch.mean()
        if places.shape[1] == per_patch.shape[1]:
            return MaskedOutput(full, full, prediction)
        n_hidden = per_patch.shape[0] * (per_patch.shape[1] - places.shape[1])  # every sample hides equally many: no sync
        masked = (per_patch * mask.hidden).sum() / n_hidden
        return MaskedOutput(masked, full, prediction)

    def reconstruct(self, voxels: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Prediction (B, C, D, H, W) and hidden (B, 1, D, H, W) bool."""
        patch, grid = self.encoder.patch, self.encoder.grid
        prediction = unpatchify(self(voxels, mask).prediction, patch, grid, voxels.shape[1])
        per_voxel = mask.hidden[:, :, None].expand(-1, -1, math.prod(patch))
        return prediction, unpatchify(per_voxel, patch, grid)
