"""The NEMESIS masked autoencoder: encoder over the visible tokens, decoder over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nemesis.models.architecture import Architecture, Size
from nemesis.models.blocks import Block, Blocks, initialise
from nemesis.models.embedding import NemesisEmbedding, patchify, sincos_positions, unpatchify
from nemesis.models.masking import Mask, Masking, draw_mask, mask_of, nothing_masked


class Encoder(nn.Module):
    """Visible patches → tokens; positions are fixed sines and cosines times the learnable ``pe_scale``."""

    positions: Tensor

    def __init__(self, architecture: Architecture, masking: Masking | None = None) -> None:
        super().__init__()
        a = architecture
        self.patch, self.grid, self.masking = a.patch, a.grid, masking or Masking()
        self.expects = (a.channels, *a.superpatch)
        self.pe_scale = nn.Parameter(torch.tensor(a.position_scale))
        if a.tokens:
            self.adaptive_agg = NemesisEmbedding(a)
        else:
            self.patch_embed = nn.Linear(a.patch_voxels, a.embed_dim)
        self.blocks = Blocks(Block(a, a.embed_dim, a.heads) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.embed_dim)
        self.register_buffer("positions", sincos_positions(a.grid, a.embed_dim), persistent=False)
        initialise(self)

    def forward(self, x: Tensor, mask: Mask | Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels (B, C, D, H, W) → tokens (B, V, E), hidden (B, N) bool, numbers of the visible tokens (B, V).

        Args:
            mask: what to hide ((B, N) bool, True = hidden); None draws one in training by torch's generator, and hides nothing
                in evaluation.

        Raises:
            ValueError: voxels of another size than the network was built for, or no such mask.
        """
        chosen = self.choose(x, mask)
        tokens = self.encode(visible_patches(self.patches(x), chosen), chosen.keep)
        return tokens.flatten(1, 2), chosen.hidden, chosen.keep.flatten(1)

    def patches(self, x: Tensor) -> Tensor:
        """Voxels (B, C, D, H, W) → (B, N, p_d, p_h·p_w·C).

        Raises:
            ValueError: another size than the network was built for.
        """
        if tuple(x.shape[1:]) != self.expects:
            raise ValueError(f"voxels are (B, {', '.join(map(str, self.expects))}) here, not {tuple(x.shape)}")
        return patchify(x, self.patch)

    def choose(self, x: Tensor, mask: Mask | Tensor | None) -> Mask:
        """The mask that was given, or the one that :meth:`forward` takes where none was.

        Raises:
            ValueError: no mask of this batch.
        """
        if isinstance(mask, Tensor):
            mask = mask_of(mask, self.grid, self.masking.visible(self.grid) if self.masking.plane == "uniform" else None)
        if mask is not None:
            if len(mask.hidden) != len(x):
                raise ValueError(f"the mask is of {len(mask.hidden)} superpatches, the batch holds {len(x)}")
            return mask
        if not self.training:
            return nothing_masked(self.grid, len(x), x.device)
        return draw_mask(self.grid, self.masking, torch.rand(len(x), math.prod(self.grid), device=x.device))

    def encode(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Visible patches (B, T'·n, p_d, p_h·p_w·C) and their token numbers (B, T', n) → tokens (B, T', n, E)."""
        return self.norm(self.blocks(self._embedded(patches, keep)))

    def _embedded(self, patches: Tensor, keep: Tensor) -> Tensor:
        embedded = self.adaptive_agg(patches) if hasattr(self, "adaptive_agg") else self.patch_embed(patches.flatten(2))
        x = embedded + self.pe_scale * self.positions[keep.flatten(1)]
        return x.view(*keep.shape, -1)

    def grids(self, voxels: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Superpatches (B, C, D, H, W), nothing masked → the tokens on their grid (B, E, d, h, w): after so many blocks, each,
        and the final ones."""
        keep = nothing_masked(self.grid, len(voxels), voxels.device).keep
        states = list(self.blocks.states(self._embedded(self.patches(voxels), keep)))
        chosen = [*(states[n - 1] for n in after), self.norm(states[-1])]
        return [tokens.reshape(len(voxels), *self.grid, -1).permute(0, 4, 1, 2, 3) for tokens in chosen]

    def embed(self, voxels: Tensor) -> Tensor:
        """Superpatches (B, C, D, H, W) → the mean over their final tokens (B, E), nothing masked."""
        keep = nothing_masked(self.grid, len(voxels), voxels.device).keep
        return self.encode(self.patches(voxels), keep).mean(dim=(1, 2))


class Decoder(nn.Module):
    """Mask tokens everywhere, the visible tokens in their places, positions added, blocks on the full grid, voxels out."""

    positions: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a, width = architecture, architecture.decoder_width
        self.grid: Size = a.grid
        self.pe_scale = nn.Parameter(torch.tensor(a.position_scale)) if a.decoder_position_scale == "copied" else None
        self.embed = nn.Linear(a.embed_dim, width) if width != a.embed_dim else nn.Identity()
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = Blocks(Block(a, width, a.decoder_heads) for _ in range(a.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, a.patch_voxels)
        self.register_buffer("positions", sincos_positions(a.grid, width), persistent=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are near zero, not noise

    def forward(self, tokens: Tensor, mask: Mask, pe_scale: Tensor) -> Tensor:
        """Tokens (B, T', n, E) → voxels of every patch (B, N, p_d·p_h·p_w·C)."""
        if self.pe_scale is not None:
            self.pe_scale.data.copy_(pe_scale.data)  # as released: equal to the encoder's, with a gradient of its own
            pe_scale = self.pe_scale
        visible = self.embed(tokens.flatten(1, 2))
        batch, width = len(visible), visible.shape[-1]
        places = mask.keep.flatten(1)[:, :, None].expand(-1, -1, width)
        x = visible.new_zeros(batch, math.prod(self.grid), width).scatter(1, places, visible)
        x = torch.where(mask.hidden[:, :, None], self.mask_token.to(x.dtype), x) + pe_scale * self.positions
        x = self.blocks(x.view(batch, self.grid[0], -1, width))
        return self.head(self.norm(x)).flatten(1, 2)


class MaskedOutput(NamedTuple):
    """loss, full_mse: float32 scalars; prediction (B, N, p_d·p_h·p_w·C) in the precision of the network."""

    loss: Tensor
    full_mse: Tensor
    prediction: Tensor


class MaskedAutoencoder(nn.Module):
    """NEMESIS: mean squared error on the masked patches of the clean volume (arXiv 2604.01612)."""

    def __init__(self, architecture: Architecture, masking: Masking | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder, self.decoder = Encoder(architecture, masking), Decoder(architecture)

    def recompute(self, on: bool = True) -> None:
        """Switch activation checkpointing of all blocks."""
        self.encoder.blocks.recompute = self.decoder.blocks.recompute = on

    def forward(self, voxels: Tensor, mask: Mask, noise: Tensor | None = None) -> MaskedOutput:
        """Clean voxels (B, C, D, H, W), what to hide, and noise (B, V, p_d, p_h·p_w·C) for the visible patches.

        Where nothing is hidden the loss covers the whole volume.
        """
        target = self.encoder.patches(voxels)
        visible = visible_patches(target, mask)
        tokens = self.encoder.encode(visible if noise is None else visible + noise, mask.keep)
        prediction = self.decoder(tokens, mask, self.encoder.pe_scale)
        per_patch = squared_error(prediction, target.flatten(2))
        full = per_patch.mean()
        n_hidden = per_patch.numel() - mask.keep.numel()  # every sample hides equally many: no waiting for the device
        if not n_hidden:
            return MaskedOutput(full, full, prediction)
        return MaskedOutput((per_patch * mask.hidden).sum() / n_hidden, full, prediction)

    def reconstruct(self, voxels: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Prediction (B, C, D, H, W) and hidden (B, 1, D, H, W) bool."""
        patch, grid = self.encoder.patch, self.encoder.grid
        prediction = unpatchify(MaskedAutoencoder.forward(self, voxels, mask).prediction.float(), patch, grid, voxels.shape[1])
        per_voxel = mask.hidden[:, :, None].expand(-1, -1, math.prod(patch))
        return prediction, unpatchify(per_voxel, patch, grid)


class _SquaredError(torch.autograd.Function):
    """Three passes over the voxels, forward and backward, where the plain formula takes eight."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        device = "cpu" if prediction.is_meta else prediction.device.type  # the meta device, on which costs are counted, has none
        with torch.autocast(device, enabled=False):  # which would compute the products in bf16
            difference = prediction - target
            ctx.save_for_backward(difference)
            ctx.kind = prediction.dtype
            return torch.linalg.vecdot(difference, difference) / target.shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        scale = (2.0 / difference.shape[-1]) * grad[..., None]
        return torch.mul(difference, scale, out=torch.empty_like(difference, dtype=ctx.kind)), None


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error (B, N), float32, of predictions (B, N, P) of any precision; targets (B, N, P) are data."""
    function: Any = _SquaredError
    return function.apply(prediction, target)


def visible_patches(patches: Tensor, mask: Mask) -> Tensor:
    """Of patches (B, N, p_d, p_h·p_w·C) those that the mask leaves visible (B, V, p_d, p_h·p_w·C)."""
    return patches.gather(1, mask.keep.flatten(1)[:, :, None, None].expand(-1, -1, *patches.shape[2:]))
