"""MONAI's masked autoencoder, told which tokens it sees instead of drawing them."""

from __future__ import annotations

import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from torch import Tensor


class KeyedMaskedAutoEncoder(MaskedAutoEncoderViT):
    """MONAI's modules and weights, put together as He et al. describe them (arXiv 2111.06377, figure 1).

    MONAI's own forward pass draws the mask from torch's generator for the batch as a whole, so that a sample's mask would depend
    on its neighbours, and it stops at mixed precision.
    """

    def tokens(self, voxels: Tensor, keep: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) and the visible tokens' numbers (B, V) → the encoder's (B, 1 + V, E), class token first."""
        embedded = self.patch_embedding(voxels)
        seen = embedded.gather(1, keep[:, :, None].expand(-1, -1, embedded.shape[2]))
        return self.blocks(torch.cat([self.cls_token.expand(len(seen), -1, -1), seen], dim=1))

    def forward(self, voxels: Tensor, keep: Tensor) -> Tensor:  # type: ignore[override]
        """Voxels (B, 1, D, H, W) and the visible tokens' numbers (B, V) → all patches (B, N, p³), visible ones too."""
        tokens = self.decoder_embed(self.tokens(voxels, keep))
        first, seen = tokens[:, :1], tokens[:, 1:]
        n, width = self.decoder_pos_embedding.shape[1:]
        # scatter wants one precision: a layer's outputs are bfloat16 under autocast, parameters are not
        every = self.mask_tokens.to(seen.dtype).expand(len(seen), n, -1)
        every = every.scatter(1, keep[:, :, None].expand(-1, -1, width), seen) + self.decoder_pos_embedding
        decoded: Tensor = self.decoder_pred(self.decoder_blocks(torch.cat([first, every], dim=1)))
        return decoded[:, 1:]
