"""MONAI's VQ-VAE with a codebook that revives dead codes by keyed random numbers and quantises in single precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
from monai.networks.nets.vqvae import VQVAE
from torch import Tensor, distributed

# of the least use of a code that is not dead, what a revived one begins with: it is dead again in about ten steps without use.
# An encoder that has just begun moves its outputs away from all codes at once, faster than the codes' averages follow
REVIVED = 1.1


class Quantised(NamedTuple):
    """reconstruction (B, 1, D, H, W); commitment: β · mean squared distance of encodings to their codes, a scalar; codes
    (B, d, h, w) int64: the number of each encoding's code."""

    reconstruction: Tensor
    commitment: Tensor
    codes: Tensor


class Codebook(EMAQuantizer):
    """Codes that follow the mean of what is assigned to them (van den Oord et al., arXiv 1711.00937, appendix A.1).

    A code that nothing is assigned to never moves again. Such *dead* codes are set to encodings of the present batch (as
    Dhariwal et al., Jukebox, arXiv 2005.00341, section 3.1), which the caller's random scores choose. At the first step all are
    dead, so the codebook starts among the encodings. All that is learnt is in buffers and a parameter without gradient.
    """

    def __init__(self, *, dead_below: float, **arguments: Any) -> None:
        super().__init__(spatial_dims=3, **arguments)
        self.dead_below = dead_below

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodings (B, C, d, h, w) → their codes' vectors, through which the gradient passes straight to the encodings, the
        commitment, and the codes' numbers (B, d, h, w); in training the codes then follow."""
        # distances are small differences of large numbers, and codes average over a hundred steps: bfloat16 loses both; the
        # meta device, on which costs are counted, has no autocast
        with torch.autocast("cpu" if inputs.is_meta else inputs.device.type, enabled=False):
            encodings = inputs.float()
            flat, _, numbers = self.quantize(encodings)
            vectors = self.embed(numbers)
            if self.training:
                self.follow(flat, numbers.flatten())
            commitment = self.commitment_cost * (encodings - vectors).square().mean()
        return encodings + (vectors - encodings).detach(), commitment, numbers

    @torch.no_grad()
    def follow(self, flat: Tensor, numbers: Tensor) -> None:
        """Move the codes towards the means of what was assigned to them, as MONAI's quantiser does, but by sums over what a code
        was assigned: a product with a table of encodings × codes costs more than the distances, for zeros.

        Args:
            flat: (N, C) encodings.
            numbers: (N,) their codes.
        """
        uses = torch.zeros_like(self.ema_cluster_size).index_add_(0, numbers, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.ema_w).index_add_(0, numbers, flat)
        self.distributed_synchronization(uses, sums)
        self.ema_cluster_size.lerp_(uses, 1.0 - self.decay)
        self.ema_w.lerp_(sums, 1.0 - self.decay)
        total = self.ema_cluster_size.sum()
        smoothed = (self.ema_cluster_size + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.embedding.weight.copy_(self.ema_w / smoothed[:, None])

    @torch.no_grad()
    def revive(self, encodings: Tensor, scores: Tensor) -> None:
        """Set dead codes to the encodings with the lowest scores, of all processes.

        A code is dead when fewer than ``dead_below`` · (encodings / codes) are assigned to it per step, by its moving average. It
        begins anew with a little more than that, so it moves with the first encodings that it is assigned.

        Args:
            encodings: (B, C, d, h, w).
            scores: (B, d·h·w) in [0, 1), one for each encoding; a tie goes to the first.
        """
        k = self.num_embeddings
        vectors = encodings.float().flatten(2).transpose(1, 2).reshape(-1, self.embedding_dim)
        order = scores.flatten().argsort(stable=True)[:k]
        # as many from every process, whatever it holds: those that are missing come last and are not taken
        chosen, rank = vectors.new_zeros(k, self.embedding_dim), vectors.new_full((k,), torch.inf)
        chosen[: len(order)], rank[: len(order)] = vectors[order], scores.flatten()[order]
        count = vectors.new_full((), len(vectors))
        if self.ddp_sync and distributed.is_available() and distributed.is_initialized():
            chosen, rank = _from_all(chosen), _from_all(rank)
            distributed.all_reduce(count)
            order = rank.argsort(stable=True)[:k]
            chosen, rank = chosen[order], rank[order]
        floor = self.dead_below * count / k
        dead = self.ema_cluster_size <= floor
        number = (dead.cumsum(0) - 1).clamp(min=0)  # of a code among the dead ones
        revived = dead & rank[number].isfinite()
        self.ema_cluster_size.copy_(torch.where(revived, REVIVED * floor, self.ema_cluster_size))
        self.embedding.weight.copy_(torch.where(revived[:, None], chosen[number], self.embedding.weight))
        self.ema_w.copy_(torch.where(revived[:, None], REVIVED * floor * chosen[number], self.ema_w))


def _from_all(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values)
    return torch.cat(parts)


class KeyedVQVAE(VQVAE):
    """MONAI's network around a :class:`Codebook`; MONAI's own arguments but for those of its quantiser."""

    def __init__(self, codebook: Codebook, **arguments: Any) -> None:
        super().__init__(
            spatial_dims=3,
            num_embeddings=codebook.num_embeddings,
            embedding_dim=codebook.embedding_dim,
            **arguments,
        )
        self.quantizer = VectorQuantizer(codebook)

    def forward(self, voxels: Tensor, scores: Tensor | None = None) -> Quantised:  # type: ignore[override]
        """Voxels (B, 1, D, H, W); scores (B, d·h·w) in [0, 1), by which dead codes are revived before training quantises."""
        encodings = self.encode(voxels)
        codebook: Any = self.quantizer.quantizer
        if self.training and scores is not None:
            codebook.revive(encodings, scores)
        quantised, commitment, codes = codebook(encodings)
        return Quantised(self.decode(quantised), commitment, codes)


def perplexity(codes: Tensor, n: int) -> Tensor:
    """exp(entropy) of how often each of ``n`` codes was chosen: 1 (always the same) to n (all alike); a scalar.

    Args:
        codes: numbers of codes, of any shape, int64.
        n: size of the codebook.
    """
    share = torch.zeros(n, device=codes.device).scatter_add_(0, codes.flatten(), torch.ones(codes.numel(), device=codes.device))
    share = share / codes.numel()
    return torch.exp(torch.special.entr(share).sum())
