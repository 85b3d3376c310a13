"""Random ViT: the NEMESIS encoder as initialised, the control that any pretraining has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemesis.method import MethodCard, register
from nemesis.methods.nemesis import EncoderSettings, NemesisEncoderMethod

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
class RandomViT(NemesisEncoderMethod[EncoderSettings]):
    """Learns nothing; at the same seed and size its weights are those that NEMESIS's encoder starts from."""

    card = MethodCard(
        name="random_vit",
        title="Random ViT",
        paper="control of the NEMESIS paper, arXiv 2604.01612, Table II",
        licence="MIT",
        version=1,
        pretext=False,
        reconstructs=False,
        segments=True,
        smallest_input=16,
        native_input="as NEMESIS",
        small={"patch": 4, "embed_dim": 64, "depth": 1, "heads": 4},
    )
    settings_type = EncoderSettings

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from nemesis.models.autoencoder import Encoder

        return Encoder(self.architecture)

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`."""
        return network.embed(voxels)
