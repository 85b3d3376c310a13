"""What ingestion says of a prepared scan: figures of its intensities, what of it is empty, and its hash."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.foreground import MAP_EDGE, BlockSums, Window, lattice

LOWEST, HIGHEST = -32768, 32767
HISTOGRAM = np.arange(-1024, 3073, 64)  # HU: first ends of the histogram's bins, the last one's end closing it


def intensities(hu: NDArray[np.int16]) -> dict[str, Any]:
    """hu_mean, hu_std, hu_min, hu_max and hu_histogram of int16 (D, H, W), exactly and plane by plane.

    The histogram counts voxels: below −1024 HU, in 64 bins of 64 HU each, and from 3072 on.
    """
    counts = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    for plane in hu:
        low = int(plane.min())
        found = np.bincount(np.subtract(plane, low, dtype=np.int32).ravel())
        counts[low - LOWEST : low - LOWEST + len(found)] += found
    values = np.arange(LOWEST, HIGHEST + 1)
    there = np.flatnonzero(counts)
    total, squares = (int((counts[there] * values[there] ** power).sum()) for power in (1, 2))
    ends = [0, *(HISTOGRAM - LOWEST), len(counts)]
    return {
        "hu_mean": total / hu.size,
        "hu_std": math.sqrt(hu.size * squares - total**2) / hu.size,
        "hu_min": int(values[there[0]]),
        "hu_max": int(values[there[-1]]),
        "hu_histogram": [int(n) for n in np.add.reduceat(counts, ends[:-1])],
    }


def content_hash(hu: NDArray[np.int16]) -> str:
    """SHA-256 of a scan's shape and its HU."""
    digest = hashlib.sha256(repr(hu.shape).encode())
    digest.update(np.ascontiguousarray(hu, "<i2").data)
    return digest.hexdigest()


def label_voxels(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels of each number from 0 to the highest that occurs; plane by plane, for bincount widens what it counts."""
    top = int(labels.max())
    counts = np.zeros(top + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=top + 1)
    return counts


def emptiness(
    hu: NDArray[np.int16], window: Window, floor: float, shares: Iterable[int], brightest: Iterable[int]
) -> dict[str, Any]:
    """What of a scan is empty, as JSON holds it (:mod:`nemesis.data.foreground`).

    Args:
        hu: int16 (D, H, W).
        window: the preparation's, as its foreground floor.
        floor: mean under which a box is empty.
        shares: edges of the superpatches of which is told how large a share of the evaluation grid is not empty.
        brightest: edges of the crops of which the brightest one's mean is told.

    Returns:
        ``map`` (see :func:`unpacked`); ``foreground``: edge → share; ``brightest``: edge → mean.
    """
    shares, brightest = sorted(set(shares)), sorted(set(brightest))
    sums = BlockSums(hu, window)
    for edge in sorted({MAP_EDGE, *shares, *map(lattice, brightest)}):
        sums.of(edge)  # the small ones first: larger ones are made of them
    return {
        "map": base64.b64encode(zlib.compress(sums.map().tobytes())).decode("ascii"),
        "foreground": {str(edge): float((sums.grid_foreground(edge) >= floor).mean()) for edge in shares},
        "brightest": {str(edge): sums.brightest(edge)[1] for edge in brightest},
    }


def unpacked(text: str) -> bytes:
    """The bytes of a map (:meth:`BlockSums.map`), as JSON holds it."""
    return zlib.decompress(base64.b64decode(text))
