"""How alike two volumes are: PSNR and SSIM, and all the cells in which a reconstruction is judged.

The input lies in [0, 1], so the data range is 1 everywhere; predictions are taken as the network says them, unclipped (LPIPS,
which looks at pictures, clips them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SLAB_VOXELS = 2**22  # a stitched volume is taken in slabs of about this size
SMALLEST_MSE = 1e-10

Measure = tuple[bool, str | None, str]  # input masked, region, metric
Perceptual = Callable[[Sequence[Tensor], Tensor], list[float]]  # volumes and what they ought to be → a distance of each


def psnr(prediction: Tensor, target: Tensor) -> float:
    """−10 log₁₀ of the mean squared error, in dB (data range 1, at most 100); NaN where there are no voxels."""
    if not target.numel():
        return float("nan")
    parts = zip(*(torch.split(side.flatten(), SLAB_VOXELS) for side in (prediction, target)), strict=True)
    error = sum((one.double() - other.double()).square().sum().item() for one, other in parts) / target.numel()
    return float(-10 * np.log10(max(error, SMALLEST_MSE)))


def ssim(prediction: Tensor, target: Tensor) -> float:
    """Mean structural similarity of two volumes (D, H, W) (Wang et al., IEEE TIP 2004), as scikit-image defines it.

    3D Gaussian window of 11 voxels (σ 1.5), data range 1, K₁ 0.01, K₂ 0.03, population covariance, windows wholly
    inside the volume. Three passes along the axes are twenty times faster than torchmetrics' 11³ kernel.

    Returns:
        NaN where the volume is smaller than the window.
    """
    width = 2 * SSIM_RADIUS + 1
    depth, height, width_w = target.shape
    if min(depth, height, width_w) < width:
        return float("nan")
    slab = max(1, SLAB_VOXELS // (height * width_w))
    total, count = 0.0, 0
    for first in range(0, depth - width + 1, slab):
        window = slice(first, first + slab + width - 1)
        similarity = _ssim_map(prediction[window], target[window])
        total += similarity.double().sum().item()
        count += similarity.numel()
    return total / count


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
    taps = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    taps = taps / taps.sum()
    moments = torch.stack([a, b, a * a, b * b, a * b])
    for axis in (1, 2, 3):
        n = moments.shape[axis] - 2 * SSIM_RADIUS
        filtered = torch.zeros_like(moments.narrow(axis, 0, n))
        for shift, tap in enumerate(taps.tolist()):
            filtered.add_(moments.narrow(axis, shift, n), alpha=tap)
        moments = filtered
    mean_a, mean_b, aa, bb, ab = moments
    c1, c2 = 0.01**2, 0.03**2
    covariance, variances = ab - mean_a * mean_b, aa - mean_a**2 + bb - mean_b**2
    similarity: Tensor = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    return similarity


def measure(
    truth: Tensor, hidden: Tensor, predicted: Tensor, filled: Tensor, unmasked: Tensor | None, lpips: Perceptual | None = None
) -> dict[Measure, float]:
    """All figures of one volume, each tensor (D, H, W).

    PSNR on the voxels that the mask hides, on those that it leaves visible and on the whole; SSIM and LPIPS, which look at
    neighbourhoods, on the whole alone. *Pasted* is the prediction where the input was hidden and the input itself where it was
    seen: region ``whole`` under a mask. Of unmasked input ``masked`` and ``visible`` are the same voxels, all of them seen.

    ``masked`` is NaN where nothing or everything is hidden: the fill, which stands beside it, needs both. ``whole`` under a mask
    is NaN where nothing is hidden, for the input would be compared with itself.

    Args:
        truth: the input.
        hidden: True where the network did not see it.
        predicted: what it then said.
        filled: what filling the hidden voxels with the mean of the visible ones gives there.
        unmasked: what it says when it sees everything; None where that is not asked for.
        lpips: see :mod:`nemesis.evaluation.lpips`; None where its weights are not there.
    """
    nan = float("nan")
    some, every = bool(hidden.any()), bool(hidden.all())

    def of(prediction: Tensor, region: str) -> float:
        where = hidden if region == "masked" else ~hidden
        return nan if region == "masked" and every else psnr(prediction[where], truth[where])

    pasted = torch.where(hidden, predicted, truth)
    found: dict[Measure, float] = {
        (True, None, "effective_mask_ratio"): hidden.float().mean().item(),
        (True, "masked", "psnr"): of(predicted, "masked"),
        (True, "masked", "psnr_visible_mean"): of(filled, "masked"),
        (True, "visible", "psnr"): of(predicted, "visible"),
    }
    wholes = [(True, pasted, some)]
    if unmasked is not None:
        found |= {(False, region, "psnr"): of(unmasked, region) if some else nan for region in ("masked", "visible")}
        wholes.append((False, unmasked, True))
    for input_masked, volume, judged in wholes:
        found[input_masked, "whole", "psnr"] = psnr(volume, truth) if judged else nan
        found[input_masked, "whole", "ssim"] = ssim(volume, truth) if judged else nan
    if lpips is not None:
        distances = iter(lpips([volume for _, volume, judged in wholes if judged], truth))
        found |= {(masked, "whole", "lpips"): next(distances) if judged else nan for masked, _, judged in wholes}
    return found
