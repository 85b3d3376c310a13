"""What a network that segments is trained by: Dice and cross-entropy per class, where label maps may be partial.

Every class has a logit of its own (sigmoid): a class that was not drawn in a scan says nothing there, and is left out for that
sample, while the others train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0  # voxel: keeps Dice finite, and its gradient bounded where a class has a voxel or two


def dice_bce(logits: Tensor | Sequence[Tensor], classes: Tensor, known: Tensor) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, in equal parts; under deep supervision averaged over the resolutions.

    Cross-entropy is the mean over the voxels of all known classes. Dice (Milletari et al., V-Net, 3DV 2016, with the plain sum in
    the denominator) is taken per sample and class, and averaged over those that are known and present: of an absent one it would
    be 1 whatever the network says, and cross-entropy alone teaches absence. Where nothing is known the loss is 0.

    Args:
        logits: (B, K, D, H, W), or several of falling resolution, the full one first: the i-th weighs 2⁻ⁱ, the weights add up to
            1 (Isensee et al., nnU-Net, Nature Methods 2021), and the classes are subsampled to its voxels.
        classes: (B, 1, D, H, W) integers: k at voxels of the k-th class (from 1), 0 where there is none.
        known: (B, K) bool: whether the class was drawn in the sample's scan.

    Returns:
        scalar float32 with gradient.

    Raises:
        ValueError: an edge of ``classes`` is not a multiple of that of the logits, or the numbers of classes differ.
    """
    levels = [logits] if isinstance(logits, Tensor) else list(logits)
    weights = [2.0**-i for i in range(len(levels))]
    losses = [
        weight * _dice_bce(level, _subsampled(classes, level), known) for weight, level in zip(weights, levels, strict=True)
    ]
    return torch.stack(losses).sum() / sum(weights)


def _subsampled(classes: Tensor, logits: Tensor) -> Tensor:
    """The class of the voxel just beyond the middle of each coarse voxel: of two voxels the second."""
    steps = [n // m for n, m in zip(classes.shape[2:], logits.shape[2:], strict=True)]
    if any(n != m * step for n, m, step in zip(classes.shape[2:], logits.shape[2:], steps, strict=True)):
        raise ValueError(f"classes {tuple(classes.shape[2:])} cannot be subsampled to logits {tuple(logits.shape[2:])}")
    d, h, w = steps
    return classes[:, :, d // 2 :: d, h // 2 :: h, w // 2 :: w]


def _dice_bce(logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    number = logits.shape[1]
    if known.shape != logits.shape[:2]:
        raise ValueError(f"logits of {number} classes, of which {tuple(known.shape)} are said to be known or not")
    logits = logits.float().flatten(2)  # sums over voxels overflow in half precision
    numbers = torch.arange(1, number + 1, device=classes.device).view(1, -1, 1)
    target = (classes.flatten(2) == numbers).float()
    entropies = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=2)
    probability, drawn = logits.sigmoid(), target.sum(dim=2)
    overlap = (probability * target).sum(dim=2)
    dice = (2 * overlap + SMOOTH) / (probability.sum(dim=2) + drawn + SMOOTH)
    return _mean_where(1 - dice, known & (drawn > 0)) + _mean_where(entropies, known)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 (with a gradient of 0) where none is."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
