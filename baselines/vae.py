"""VAE: a convolutional autoencoder whose bottleneck is a Gaussian held near the standard normal (MAESIL's comparison)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys


class VariationalSettings(Settings):
    """Size of the network, weight of the divergence."""

    channels: tuple[Annotated[int, Field(gt=0)], ...] = key(
        (16, 32, 64, 128), "Channels of the stages, each of which halves the edge", "channels", min_length=1
    )
    residual_units: int = key(2, "Convolutions per stage, with a residual connection", "convolutions", ge=0)
    latent: int = key(256, "Numbers of the bottleneck, which are the features", "numbers", ge=1)
    kl_weight: float = key(
        0.02,
        "Weight β of the divergence per voxel: the bound on the likelihood where β / 2 is the variance of the noise that "
        "reconstructions are told apart from voxels by; 0.02 is a deviation of 0.1",
        "squared [0, 1] units",
        ge=0,
    )


@register
class VariationalAutoEncoder(Method[VariationalSettings]):
    """Mean squared error of the reconstruction + β · KL / voxels; KL is summed over the bottleneck, averaged over the batch.

    Divided by the voxels, both terms have the proportion of the evidence lower bound at any size of superpatch: the error is
    a mean over voxels, the divergence a sum.
    """

    card = MethodCard(
        name="vae",
        title="VAE",
        paper="Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114; compared in MAESIL, Table II",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=1,
        pretext=True,
        reconstructs=True,
        smallest_input=16,
        native_input="superpatch, axes (D, H, W), values in [0, 1]",
        small={"channels": (4, 8), "latent": 16},
    )
    settings_type = VariationalSettings

    def check(self) -> None:
        """See :meth:`Method.check`."""
        stages = len(self.settings.channels)
        if self.superpatch % 2**stages or self.superpatch == 2**stages:  # one voxel has no spread to normalise by
            raise ValueError(f"superpatch {self.superpatch} cannot be halved {stages} times and keep more than a voxel")

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        return self.build_at((self.superpatch,) * 3)

    def build_at(self, size: tuple[int, int, int]) -> nn.Module:
        """The same network for an input of ``size`` voxels (D, H, W): a whole volume's cost is counted on it."""
        from baselines.networks.variational import KeyedVarAutoEncoder

        s = self.settings
        return KeyedVarAutoEncoder(
            spatial_dims=3,
            in_shape=(1, *size),
            out_channels=1,
            latent_size=s.latent,
            channels=list(s.channels),
            strides=[2] * len(s.channels),
            num_res_units=s.residual_units,
            use_sigmoid=False,  # voxels are mostly at either end of the window, where a sigmoid's gradient vanishes
            use_mean_at_inference=True,  # MONAI's default decodes mean + deviation
        )

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``kl`` in nats per superpatch: 0 where the bottleneck says nothing."""
        from baselines.networks.variational import divergence

        out = network(batch.voxels, batch.keys.normal("latent", self.settings.latent))
        mse = (out.reconstruction.float() - batch.voxels).square().mean()
        kl = divergence(out.mean, out.log_variance)
        total = mse + self.settings.kl_weight / math.prod(batch.voxels.shape[1:]) * kl
        return PretextLoss(total, {"psnr": -10.0 * (mse.detach() + 1e-8).log10(), "kl": kl.detach()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the posterior's mean."""
        return network.posterior_mean(voxels)

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`: what the posterior's mean decodes to; there is no mask, whatever the keys."""
        import torch

        prediction = network.decode_forward(network.posterior_mean(voxels), network.use_sigmoid).float()
        return Reconstruction(prediction, torch.zeros_like(voxels, dtype=torch.bool))
