"""AE: an ordinary convolutional autoencoder that reconstructs the whole clean superpatch (MAESIL's comparison)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys


class AutoEncoderSettings(Settings):
    """Size of the network."""

    channels: tuple[Annotated[int, Field(gt=0)], ...] = key(
        (16, 32, 64, 128), "Channels of the stages, each of which halves the edge", "channels", min_length=1
    )
    residual_units: int = key(2, "Convolutions per stage, with a residual connection", "convolutions", ge=0)


@register
class AutoEncoder(Method[AutoEncoderSettings]):
    """Mean squared error between the superpatch and its passage through a bottleneck; nothing is masked."""

    card = MethodCard(
        name="ae",
        title="AE",
        paper="MAESIL: Masked Autoencoder for Enhanced Self-supervised Medical Image Learning, Table II",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=2,
        pretext=True,
        reconstructs=True,
        smallest_input=16,
        native_input="superpatch, axes (D, H, W), values in [0, 1]",
        small={"channels": (4, 8)},
    )
    settings_type = AutoEncoderSettings

    def check(self) -> None:
        """See :meth:`Method.check`."""
        stages = len(self.settings.channels)
        if self.superpatch % 2**stages or self.superpatch == 2**stages:  # one voxel has no spread to normalise by
            raise ValueError(f"superpatch {self.superpatch} cannot be halved {stages} times and keep more than a voxel")

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from monai.networks.nets.autoencoder import AutoEncoder as MonaiAutoEncoder

        s = self.settings
        strides = [2] * len(s.channels)
        return MonaiAutoEncoder(3, 1, 1, channels=list(s.channels), strides=strides, num_res_units=s.residual_units)

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`."""
        mse = (network(batch.voxels).float() - batch.voxels).square().mean()
        return PretextLoss(mse, {"psnr": -10.0 * (mse.detach() + 1e-8).log10()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: mean and maximum of the bottleneck over space, joined.

        The mean alone says little of maps that were normalised over this very space.
        """
        import torch

        bottleneck = network.encode(voxels)
        return torch.cat([bottleneck.mean(dim=(2, 3, 4)), bottleneck.amax(dim=(2, 3, 4))], dim=1)

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`; there is no mask, whatever the keys."""
        import torch

        return Reconstruction(network(voxels).float(), torch.zeros_like(voxels, dtype=torch.bool))
