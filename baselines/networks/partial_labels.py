"""Segmentation losses for scans in which only some organs were drawn: what is unknown is neither right nor wrong."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

VOXELS = (2, 3, 4)


def one_hot(classes: Tensor, count: int) -> Tensor:
    """Classes (B, 1, D, H, W), 0 nothing and k the k-th of ``count`` → (B, count, D, H, W) float32."""
    numbers = torch.arange(1, count + 1, device=classes.device, dtype=classes.dtype)
    return (classes == numbers[:, None, None, None]).float()


def dice_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """1 − 2 Σ σ(l) t / (Σ σ(l) + Σ t + 1) over the voxels of a sample, its mean over the known classes that the sample shows.

    Args:
        logits: (B, K, D, H, W).
        truth: (B, K, D, H, W), 0 or 1.
        known: (B, K) bool.

    Returns:
        A scalar; 0 where no sample shows any class.
    """
    p = logits.sigmoid()
    score = 2 * (p * truth).sum(VOXELS) / (p.sum(VOXELS) + truth.sum(VOXELS) + 1)
    return _mean(1 - score, known & (truth.sum(VOXELS) > 0))


def bce_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy over the voxels, its mean over the known classes of all samples; arguments as :func:`dice_loss`."""
    return _mean(binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(VOXELS), known)


def hard_dice(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Dice at 0.5 of each class over the whole batch, its mean over the classes shown; arguments as :func:`dice_loss`.

    Where none is shown: 1 if none is found, 0 if one is.
    """
    found = (logits > 0).float() * known[:, :, None, None, None]
    there = truth * known[:, :, None, None, None]
    both, sizes = (found * there).sum((0, *VOXELS)), found.sum((0, *VOXELS)) + there.sum((0, *VOXELS))
    shown = there.sum((0, *VOXELS)) > 0
    return torch.where(shown.any(), _mean(2 * both / sizes.clamp_min(1), shown), (sizes.sum() == 0).float())


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
