"""How well the mask of an organ agrees with the truth: overlap, and distances between the two surfaces in mm.

A surface is the voxels of a mask that touch, by a face, a voxel outside it (at the scan's border, too); distances are Euclidean,
between centres of voxels of their true size, from every voxel of one surface to the nearest of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

UNITS = {"dice": None, "hd95": "mm", "surface_dice": None}  # what is measured of an organ that is there

ROUNDING = 1e-6  # mm: a voxel away is within a tolerance of a voxel


def dice(masks: NDArray[np.bool_], classes: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(K,): 2 |A ∩ B| / (|A| + |B|) of masks (K, D, H, W) and classes (D, H, W), k where the k-th class is (from 1).

    NaN where the truth has no voxel of a class.
    """
    found = np.full(len(masks), np.nan)
    for k, mask in enumerate(masks):
        truth = classes == k + 1
        if drawn := int(truth.sum()):
            found[k] = 2 * int((mask & truth).sum()) / (int(mask.sum()) + drawn)
    return found


def agreement(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> Mapping[str, float | None]:
    """The figures of ``UNITS`` of an organ that is there.

    hd95: the larger of the 95th percentiles of the distances from either surface to the other, mm (Huttenlocher et al., IEEE PAMI
    15(9), 1993, by quantile); None where the mask is empty: an organ that was missed is at no distance. surface_dice: the share
    of both surfaces that lies within ``tolerance`` of the other (Nikolov et al., arXiv 1809.04430, counted in voxels of the
    surface), 0 where the mask is empty.

    Args:
        mask: what a network says (D, H, W).
        truth: what was drawn (D, H, W); at least a voxel.
        spacing: of the voxels (D, H, W), mm.
        tolerance: mm.
    """
    overlap = float(dice(mask[None], truth.astype(np.uint8))[0])
    if not mask.any():
        return {"dice": overlap, "hd95": None, "surface_dice": 0.0}
    said, drawn = _surface(mask, spacing), _surface(truth, spacing)
    distances = [KDTree(other).query(one)[0] for one, other in ((said, drawn), (drawn, said))]
    within = sum(int((each <= tolerance + ROUNDING).sum()) for each in distances)
    return {
        "dice": overlap,
        "hd95": float(max(np.percentile(each, 95) for each in distances)),
        "surface_dice": within / (len(said) + len(drawn)),
    }


def _surface(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Where the voxels of a mask's surface lie (n, 3), mm."""
    (box,) = find_objects(mask.astype(np.uint8))
    inside = mask[box]
    places = np.argwhere(inside & ~binary_erosion(inside)) + [side.start for side in box]
    return np.asarray(places * np.asarray(spacing))
