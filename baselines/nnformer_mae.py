"""nnFormer pretrained by masked reconstruction (arXiv 2604.22854): whole units are replaced, as windows need every token."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from baselines.networks.nnformer_shape import Shape
    from nemesis.models.keyed import Keys

Count = Annotated[int, Field(ge=1)]


class NnFormerSettings(Settings):
    """Size of nnFormer (the defaults: Synapse, crop 64×128×128) and of what is hidden."""

    patch: tuple[Count, Count, Count] = key(
        (2, 4, 4),
        "Voxels (D, H, W) of a token of the first stage, each 1, 2 or 4; a masked unit is a token of the last",
        "voxels",
    )
    width: int = key(192, "Width of the first stage; every further one doubles it", "numbers", ge=2, multiple_of=2)
    depths: tuple[Count, ...] = key((2, 2, 2, 2), "Blocks of each stage; there are as many stages", "blocks", min_length=1)
    heads: tuple[Count, ...] = key((6, 12, 24, 48), "Attention heads of each stage", "heads", min_length=1)
    windows: tuple[Count, ...] = key(
        (4, 4, 8, 4), "Edge of the local volumes of attention, by stage; at most the whole grid", "tokens", min_length=1
    )
    mask_ratio: float = key(0.75, "Share of the units that is hidden (paper: 0.6 to 0.75)", "(0, 1)", gt=0, lt=1)
    drop_path: float = key(
        0.2, "Share of samples that leave out the last block's branches in training the segmentation", "[0, 1)", ge=0, lt=1
    )


@register
class NnFormerMae(Method[NnFormerSettings]):
    """Mean squared error over hidden units, of which the encoder sees neither voxels nor embeddings."""

    card = MethodCard(
        name="nnformer_mae",
        title="nnFormer MAE",
        paper="arXiv 2604.22854; network: Zhou et al., nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer, "
        "arXiv 2109.03201",
        licence="MIT",
        version=1,
        pretext=True,
        reconstructs=True,
        segments=True,
        smallest_input=16,
        native_input="64×128×128 crop, axes (D, H, W), HU [−175, 250] → [0, 1], native spacing; no weights are published",
        small={"patch": (2, 2, 2), "width": 24, "depths": (2, 2), "heads": (3, 6), "windows": (2, 2)},
    )
    settings_type = NnFormerSettings

    @cached_property
    def shape(self) -> Shape:
        """Of the network.

        Raises:
            ValueError: the settings do not fit each other or the superpatch.
        """
        from baselines.networks.nnformer_shape import Shape

        s, edge = self.settings, self.superpatch
        return Shape((edge, edge, edge), s.patch, s.width, s.depths, s.heads, s.windows)

    def check(self) -> None:
        """See :meth:`Method.check`."""
        if self.units < 2:
            raise ValueError(f"superpatch {self.superpatch} is one masked unit {self.shape.unit}: none would be left to see")

    @property
    def units(self) -> int:
        """Masked units of a superpatch."""
        return math.prod(self.shape.grid(self.shape.stages - 1))

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from baselines.networks.nnformer import MaskedNnFormer

        return MaskedNnFormer(self.shape)

    def hidden(self, keys: Keys) -> Tensor:
        """(B, d, h, w) bool, True for the units that are hidden of each sample: as many of each, at least one, never all."""
        number = min(max(round(self.settings.mask_ratio * self.units), 1), self.units - 1)
        ranks = keys.uniform("mask", self.units).argsort(dim=1, stable=True).argsort(dim=1)
        return (ranks < number).view(-1, *self.shape.grid(self.shape.stages - 1))

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``psnr`` is over all voxels."""
        hidden = self.hidden(batch.keys)
        errors = (network(batch.voxels, hidden).float() - batch.voxels).square()
        masked = self._voxels(hidden)
        mse = (errors * masked).sum() / masked.sum()
        monitors = {"psnr_masked": mse.detach(), "psnr": errors.detach().mean()}
        return PretextLoss(mse, {name: -10.0 * (value + 1e-8).log10() for name, value in monitors.items()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the tokens of the last stage, averaged."""
        return network.encoder(voxels)[-1].mean(dim=(1, 2, 3))

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`."""
        import torch

        if keys is None:
            return Reconstruction(network(voxels).float(), torch.zeros_like(voxels, dtype=torch.bool))
        hidden = self.hidden(keys)
        return Reconstruction(network(voxels, hidden).float(), self._voxels(hidden))

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """See :meth:`Method.segmenter`: nnFormer around the pretrained encoder; logits at full, half and quarter resolution."""
        from baselines.networks.nnformer import NnFormer

        return NnFormer(network.encoder, classes, self.settings.drop_path)

    def _voxels(self, hidden: Tensor) -> Tensor:
        from baselines.networks.nnformer import enlarged

        return enlarged(hidden, self.shape.unit)[:, None]
