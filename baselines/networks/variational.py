"""MONAI's variational autoencoder, its latent noise handed in instead of drawn; and the divergence that it is trained with."""

from __future__ import annotations

from typing import NamedTuple

from monai.networks.nets.varautoencoder import VarAutoEncoder
from torch import Tensor


class Variational(NamedTuple):
    """reconstruction (B, 1, D, H, W); mean and log_variance (B, latent) of the posterior, in single precision."""

    reconstruction: Tensor
    mean: Tensor
    log_variance: Tensor


class KeyedVarAutoEncoder(VarAutoEncoder):
    """In training the latent vector is mean + σ · noise with the caller's noise; in evaluation whatever MONAI takes there."""

    def posterior_mean(self, voxels: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) → the posterior's mean (B, latent), without the cost of its variance."""
        mean: Tensor = self.mu(self.intermediate(self.encode(voxels)).flatten(1))
        return mean

    def forward(self, voxels: Tensor, noise: Tensor) -> Variational:  # type: ignore[override]
        """Voxels (B, 1, D, H, W) and standard normal noise (B, latent), which evaluation mode does without."""
        # exponentials of what half precision rounds would not be those of the posterior that the divergence is of
        mean, log_variance = (value.float() for value in self.encode_forward(voxels))
        deviation = (0.5 * log_variance).exp()
        latent = mean + deviation * noise if self.training else self.reparameterize(mean, log_variance)
        return Variational(self.decode_forward(latent, self.use_sigmoid), mean, log_variance)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, σ²) ‖ N(0, 1)) in nats, summed over the latent numbers, averaged over the batch: a scalar.

    Kingma and Welling, Auto-Encoding Variational Bayes (arXiv 1312.6114), appendix B: ½ Σ (μ² + σ² − 1 − ln σ²).

    Args:
        mean: (B, latent).
        log_variance: (B, latent), ln σ².
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1).mean()
