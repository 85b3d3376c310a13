"""The released network under its released names: code written against the released package runs unchanged.

    from nemesis.models.mae import MAEgic3DMAE
    model = MAEgic3DMAE(embed_dim=768, depth=6, num_heads=8, decoder_embed_dim=128, decoder_depth=3, num_maegic_tokens=8)
    model.load_state_dict(torch.load("MAE_768_0.5.pt", weights_only=True)["model_state_dict"])
    tokens, mask, ids_keep = model.eval().encoder(x)  # x (B, 1, 128, 128, 128) in [0, 1]

:func:`nemesis.load` does the same and needs no sizes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemesis.config import Preparation
from nemesis.models.architecture import OFFICIAL, Architecture, Size, triple
from nemesis.models.autoencoder import Decoder, Encoder, MaskedAutoencoder, visible_patches
from nemesis.models.embedding import patchify, unpatchify
from nemesis.models.masking import Mask, Masking

MAEgicEncoder, MAEgicDecoder = Encoder, Decoder


class MAEgic3DMAE(MaskedAutoencoder):
    """The masked autoencoder, called as the released class is.

    Args:
        volume_size, drop_path_rate: change nothing, there or here.
        superpatch_size, patch_size: voxels, one number or (D, H, W).
        decoder_embed_dim: width of the decoder behind a linear projection; None: that of the encoder, as in the released code.
        use_maegic_tokens: False embeds patches linearly, without NEMESIS tokens.

    Raises:
        ValueError: sizes that do not divide each other, or another positional encoding than sines and cosines.
    """

    preparation = Preparation()  # how scans become its input: as released, or as its run says

    def __init__(
        self,
        volume_size: Any = None,
        superpatch_size: int | Size = 128,
        patch_size: int | Size = 8,
        in_channels: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 8,
        decoder_depth: int = 8,
        decoder_num_heads: int = 8,
        dropout: float = 0.1,
        drop_path_rate: float = 0.0,
        pos_encoding_type: str = "sincos",
        num_maegic_tokens: int = 8,
        spatial_mask_ratio: float = 0.5,
        depth_mask_ratio: float = 0.5,
        use_maegic_tokens: bool = True,
        decoder_embed_dim: int | None = None,
    ) -> None:
        if not pos_encoding_type.startswith("sin"):
            raise ValueError(f"pos_encoding_type '{pos_encoding_type}' is unknown: only sines and cosines ('sincos') are there")
        architecture = Architecture(
            superpatch=triple(superpatch_size),
            patch=triple(patch_size),
            channels=in_channels,
            embed_dim=embed_dim,
            depth=depth,
            heads=num_heads,
            tokens=num_maegic_tokens if use_maegic_tokens else 0,
            dropout=dropout,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_num_heads,
            **{**OFFICIAL, "decoder_dim": decoder_embed_dim},
        )
        super().__init__(architecture, Masking("thinned", "random", spatial_mask_ratio, depth_mask_ratio))

    @classmethod
    def of(cls, architecture: Architecture, masking: Masking | None = None) -> MAEgic3DMAE:
        """The same calls around a network of any architecture."""
        model = cls.__new__(cls)
        MaskedAutoencoder.__init__(model, architecture, masking)
        return model

    def forward(  # type: ignore[override]
        self, x: Tensor, positions: Any = None, noise_std: float = 0.0, mask: Tensor | Mask | None = None
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Any], Tensor]:
        """Voxels x (B, C, D, H, W) in [0, 1] → losses, reconstruction, mask and noisy input.

        Args:
            positions: not used, as in the released code.
            noise_std: standard deviation of Gaussian noise on the input; the target stays clean.
            mask: what to hide ((B, N) bool, True = hidden); None draws one in training and hides nothing in evaluation.

        Returns:
            ``total_loss``, ``recon_loss``, ``full_mse``, ``masked_ratio`` and ``psnr`` (dB, whole volume, data range 1);
            the reconstruction (B, C, D, H, W); ``mask`` (B, N) True = hidden, ``ids_keep`` (B, V), ``spatial_mask_ratio``
            and ``depth_mask_ratio``; the noisy input (B, C, D, H, W).
        """
        mask = self.encoder.choose(x, mask)
        noise = noise_std * torch.randn_like(x) if noise_std else None
        seen = None
        if noise is not None:
            seen = visible_patches(patchify(noise, self.encoder.patch), mask)
        out = super().forward(x, mask, seen)
        losses = {
            "total_loss": out.loss,
            "recon_loss": out.loss,
            "full_mse": out.full_mse,
            "masked_ratio": mask.hidden.float().mean(),
            "psnr": -10.0 * torch.log10(out.full_mse.detach() + 1e-8),
        }
        reconstruction = unpatchify(out.prediction.float(), self.encoder.patch, self.encoder.grid, x.shape[1])
        masking = self.encoder.masking
        what = {
            "mask": mask.hidden,
            "ids_keep": mask.keep.flatten(1),
            "spatial_mask_ratio": masking.plane_ratio,
            "depth_mask_ratio": masking.axis_ratio,
        }
        return losses, reconstruction, what, x if noise is None else x + noise

    def save_pretrained(self, folder: Path | str, about: Mapping[str, Any] | None = None) -> None:
        """Write ``model.safetensors`` and ``card.json`` (see :func:`nemesis.models.checkpoint.save_pretrained`)."""
        from nemesis.models.checkpoint import save_pretrained

        save_pretrained(self, Path(folder), about or {})

    @classmethod
    def from_pretrained(cls, name: Path | str, revision: str | None = None) -> MAEgic3DMAE:
        """The network of a folder written by :meth:`save_pretrained`, or of a repository of the Hugging Face Hub."""
        from nemesis.models.checkpoint import from_pretrained

        return from_pretrained(name, revision)

    def push_to_hub(self, repository: str, private: bool = False, about: Mapping[str, Any] | None = None) -> str:
        """Publish as ``owner/name`` on the Hugging Face Hub; returns the commit's address."""
        from nemesis.models.checkpoint import push_to_hub

        return push_to_hub(self, repository, private, about or {})

    def _rebuild_decoder(self, width: int) -> None:
        try:
            architecture = dataclasses.replace(self.architecture, decoder_dim=width)
        except ValueError as error:
            raise RuntimeError(f"the weights are of another decoder: {error}") from None
        what = f"the decoder is rebuilt at width {width}, the file's (it was {self.architecture.decoder_width})"
        warnings.warn(f"{what}; optimisers made before hold the old one", stacklevel=3)
        self.architecture = architecture
        self.decoder = Decoder(architecture).to(self.encoder.pe_scale).train(self.training)
        self.recompute(self.encoder.blocks.recompute)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; the encoder strictly, whatever ``strict`` says. A decoder of another width is rebuilt, with one warning.

        Raises:
            RuntimeError: names or shapes that do not fit.
        """
        token, before = state_dict.get("decoder.mask_token"), (self.architecture, self.decoder)
        if isinstance(token, Tensor) and token.shape[-1] != self.architecture.decoder_width:
            self._rebuild_decoder(token.shape[-1])
        try:
            found = super().load_state_dict(state_dict, strict=strict, assign=assign)
            if wrong := [name for name in [*found.missing_keys, *found.unexpected_keys] if not name.startswith("decoder.")]:
                raise RuntimeError(f"the weights are of another encoder: {', '.join(wrong[:3])}{' …' * (len(wrong) > 3)}")
        except RuntimeError:
            self.architecture, self.decoder = before
            raise
        return found
