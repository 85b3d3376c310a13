"""VQ-VAE: a convolutional autoencoder whose bottleneck is a map of codes from a learnt codebook (MAESIL's comparison)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys


class QuantisedSettings(Settings):
    """Size of network and codebook, and how the codebook learns."""

    channels: tuple[Annotated[int, Field(gt=0)], ...] = key(
        (32, 64, 128), "Channels of the stages, each of which halves the edge", "channels", min_length=1
    )
    residual_layers: int = key(2, "Residual layers of two convolutions per stage", "layers", ge=0)
    codes: int = key(512, "Size of the codebook", "codes", ge=2)
    code_dim: int = key(64, "Width of a code, which is that of the features", "numbers", ge=1)
    commitment: float = key(
        0.05,
        "Weight of the squared distance between encodings and their codes; the authors' 0.25 goes with an error that is divided "
        "by the variance of the data",
        ge=0,
    )
    decay: float = key(0.99, "Of the moving averages that codes follow, per step", "(0, 1)", gt=0, lt=1)
    dead_below: float = key(
        0.1, "A code is set anew when it is used less than this share of the mean use of all codes", "share", ge=0, lt=0.5
    )


@register
class VectorQuantised(Method[QuantisedSettings]):
    """Mean squared error of the reconstruction + commitment; the codebook follows by moving averages, without gradient."""

    card = MethodCard(
        name="vqvae",
        title="VQ-VAE",
        paper="van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937; compared in MAESIL, Table II",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=1,
        pretext=True,
        reconstructs=True,
        smallest_input=16,
        native_input="superpatch, axes (D, H, W), values in [0, 1]",
        small={"channels": (8, 16), "residual_layers": 1, "codes": 32, "code_dim": 16},
    )
    settings_type = QuantisedSettings

    def check(self) -> None:
        """See :meth:`Method.check`."""
        if self.superpatch % 2 ** len(self.settings.channels):
            raise ValueError(f"superpatch {self.superpatch} cannot be halved {len(self.settings.channels)} times")

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from baselines.networks.codebook import Codebook, KeyedVQVAE

        s = self.settings
        codebook = Codebook(
            num_embeddings=s.codes,
            embedding_dim=s.code_dim,
            commitment_cost=s.commitment,
            decay=s.decay,
            dead_below=s.dead_below,
        )
        stages = len(s.channels)
        return KeyedVQVAE(
            codebook,
            in_channels=1,
            out_channels=1,
            channels=s.channels,
            num_res_layers=s.residual_layers,
            num_res_channels=s.channels,
            downsample_parameters=((2, 4, 1, 1),) * stages,  # stride, kernel, dilation, padding: half the edge
            upsample_parameters=((2, 4, 1, 1, 0),) * stages,
        )

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``perplexity`` of the batch's codes: 1 where a single one is in use."""
        from baselines.networks.codebook import perplexity

        positions = (batch.voxels.shape[-1] // 2 ** len(self.settings.channels)) ** 3
        out = network(batch.voxels, batch.keys.uniform("dead codes", positions))
        mse = (out.reconstruction.float() - batch.voxels).square().mean()
        monitors = {
            "psnr": -10.0 * (mse.detach() + 1e-8).log10(),
            "perplexity": perplexity(out.codes, self.settings.codes),
        }
        return PretextLoss(mse + out.commitment, monitors)

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the encodings before they are quantised, averaged over space.

        Their average differs from that of the codes by the mean quantisation error alone, which says nothing of the scan.
        """
        return network.encode(voxels).mean(dim=(2, 3, 4))

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`; there is no mask, whatever the keys."""
        import torch

        return Reconstruction(network(voxels).reconstruction.float(), torch.zeros_like(voxels, dtype=torch.bool))
