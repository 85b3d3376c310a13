"""A few kilobytes from which two scans can be told to be one acquisition, though resampled, clipped in HU or cropped to half.

A signature holds the places of a scan's strongest key points and, for each, what lies around it. Intensities are clipped to a
window that survives clipping, blurred by a Gaussian of some millimetres and read off a lattice of millimetres, so that voxels do
not matter; key points are extrema of the blurred scan less a more blurred one, placed between voxels, so that the place of the
first voxel does not matter either. Two scans are one acquisition where many key points look alike *and* agree on one translation;
of different patients some vertebrae and stretches of skin look alike, but elsewhere. Orientation is taken as given (RAS).

The numbers below were found by trial on real scans of 176 patients; ``benchmarks/audit.py`` measures on the same scans how often
this errs. Only its threshold is judged on patients that it was not chosen on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = (-175.0, 250.0)  # HU; what lies beyond is taken for its ends, as in scans that were stored in the usual window
GRID, FINE, COARSE = 4.0, 6.0, 9.0  # mm: voxels of the blurred scan; σ of the blur; σ of what is subtracted to find key points
SAMPLED = 2.0  # mm; a scan of smaller voxels is sampled, for the blur averages thousands of voxels anyway
KEY_POINTS, LEAST = 256, 5.0  # of a scan at most; HU by which one stands out at least
EDGE, PITCH = 4, 14.0  # the lattice around a key point: points along an edge, mm between them

ALIKE = 22.0  # HU (root mean square) by which two profiles of one place differ at most
NEAR = 3.0  # mm within which translations agree
AGREE = 5  # key points that agree; pairs of scans with fewer are not looked at
CHANCE = 0.05  # share of the key points in a common region that agree in different patients
SAME = 15.0  # score from which two scans are one acquisition
CLOSEST = 1024  # pairs of key points of two scans that are looked at, at most
SLAB = 16  # planes that are blurred at a time
BLOCK = 4096  # key points of either side whose distances are computed at once: 64 MiB

SIGNATURE = np.dtype([("place", "<f4", (3,)), ("profile", "u1", (EDGE**3,))])


@dataclass(frozen=True)
class Match:
    """Two scans, by their numbers: how many key points agree on one translation, of how many in the region that both hold."""

    first: int
    second: int
    agree: int
    common: int

    @property
    def score(self) -> float:
        """Log of how much likelier so many agree at the share found than at that of different patients; 0 below that share."""
        share = self.agree / self.common
        if share <= CHANCE:
            return 0.0
        others = self.common - self.agree
        return self.agree * math.log(share / CHANCE) + (others * math.log((1 - share) / (1 - CHANCE)) if others else 0.0)

    @property
    def same(self) -> bool:
        """Both are one acquisition."""
        return self.score >= SAME


def signature(
    hu: NDArray[np.int16], spacing: tuple[float, float, float], window: tuple[float, float] = WINDOW
) -> NDArray[np.void]:
    """The signature of a scan: a row of type ``SIGNATURE`` for each key point, the strongest first.

    Args:
        hu: int16 (D, H, W), house order.
        spacing: mm, (D, H, W).
        window: HU that are told apart; signatures of different windows cannot be compared.

    Returns:
        At most ``KEY_POINTS`` rows: ``place``, mm from the first voxel's centre (D, H, W), and ``profile``, the blurred scan on
        the lattice around it, 0 to 255 from one end of the window to the other. None where the scan is thinner than three
        voxels of the grid (12 mm), or holds nothing that stands out.
    """
    from scipy.ndimage import map_coordinates

    low, high = window
    steps = [max(1, int(SAMPLED // mm)) for mm in spacing]
    sampled = hu[tuple(slice(None, None, step) for step in steps)]
    d, h, w = (mm * step for mm, step in zip(spacing, steps, strict=True))
    planes = []
    for first in range(0, len(sampled), SLAB):  # of the whole, float32 alone would take twice the scan's memory
        slab = np.clip(sampled[first : first + SLAB], np.int16(round(low)), np.int16(round(high))).astype(np.float32)
        planes.append(_blurred(_blurred(slab, 1, h, FINE), 2, w, FINE))
    fine = coarse = _blurred(np.concatenate(planes), 0, d, FINE)
    for axis in range(3):
        coarse = _blurred(coarse, axis, GRID, (COARSE**2 - FINE**2) ** 0.5)
    band = fine - coarse
    places = _extrema(band)
    ticks = (np.arange(EDGE) - (EDGE - 1) / 2) * PITCH / GRID
    lattice = np.array(list(itertools.product(ticks, repeat=3)))
    at = (places[:, None] + lattice).reshape(-1, 3).T
    seen = map_coordinates(fine, at, order=1, mode="nearest").reshape(len(places), len(lattice))
    found = np.empty(len(places), SIGNATURE)
    found["place"] = places * GRID
    found["profile"] = np.rint((seen - low) * (255 / (high - low)))
    return found


def _blurred(volume: NDArray[np.float32], axis: int, mm: float, sigma: float) -> NDArray[np.float32]:
    """A volume under a Gaussian along an axis of voxels of ``mm``, on the grid; at its ends the weights inside are scaled up."""
    n = volume.shape[axis]
    centres = np.arange(int((n - 1) * mm // GRID) + 1) * GRID
    weights = np.exp(-0.5 * ((centres[:, None] - np.arange(n) * mm) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    blurred = np.moveaxis(np.tensordot(weights.astype(np.float32), volume, (1, axis)), 0, axis)
    return np.ascontiguousarray(blurred)


def _extrema(band: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places (n, 3), in voxels, of the strongest extrema: of parabolas through each and its two neighbours along every axis."""
    from scipy.ndimage import maximum_filter, minimum_filter

    extreme = (band >= LEAST) & (band == maximum_filter(band, 3))
    extreme |= (band <= -LEAST) & (band == minimum_filter(band, 3))
    for axis in range(3):
        np.moveaxis(extreme, axis, 0)[[0, -1]] = False  # no neighbours on both sides
    found = np.argwhere(extreme)
    found = found[np.argsort(-np.abs(band[tuple(found.T)]), kind="stable")[:KEY_POINTS]]
    places = found.astype(np.float64)
    here = band[tuple(found.T)].astype(np.float64)
    for axis in range(3):
        step = np.eye(3, dtype=np.int64)[axis]
        before, after = (band[tuple((found + sign * step).T)].astype(np.float64) for sign in (-1, 1))
        bend = before - 2 * here + after
        places[:, axis] += np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend != 0).clip(-0.5, 0.5)
    return places


def matches(first: Iterable[NDArray[np.void]], second: Sequence[NDArray[np.void]]) -> Iterator[Match]:
    """Compare every signature of ``first`` with every one of ``second``: the pairs of which ``AGREE`` key points agree or more.

    ``first`` is read as it is needed: of 100,000 scans a few are in memory at a time. Distances are products of matrices of whole
    numbers below 2²⁴, so that float32 is exact and every machine finds the same.
    """
    others = _Stack(0, second)
    waiting: list[NDArray[np.void]] = []
    start = 0
    for one in first:
        if waiting and sum(map(len, waiting)) + len(one) > BLOCK:
            yield from _matches(_Stack(start, waiting), others)
            start += len(waiting)
            waiting = []
        waiting.append(one)
    yield from _matches(_Stack(start, waiting), others)


class _Stack:
    """The key points of several scans, one below the other."""

    def __init__(self, start: int, signatures: Sequence[NDArray[np.void]]) -> None:
        together = np.concatenate([np.empty(0, SIGNATURE), *signatures])
        self.scan = np.repeat(np.arange(start, start + len(signatures)), [len(one) for one in signatures])
        self.place = together["place"].astype(np.float64)
        self.profile = together["profile"].astype(np.float32) - 128  # about 0, so that products stay small
        self.squares = np.square(self.profile).sum(axis=1)

    def __len__(self) -> int:
        return len(self.scan)

    def of_scan(self, scan: int) -> NDArray[np.float64]:
        """Places (mm) of a scan's key points."""
        return self.place[np.searchsorted(self.scan, scan) : np.searchsorted(self.scan, scan, "right")]


def _matches(first: _Stack, second: _Stack) -> Iterator[Match]:
    limit = EDGE**3 * (ALIKE * 255 / (WINDOW[1] - WINDOW[0])) ** 2
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for begin in range(0, len(second), BLOCK):
        part = slice(begin, begin + BLOCK)
        apart = first.profile @ second.profile[part].T
        apart *= -2
        apart += first.squares[:, None]
        apart += second.squares[part]
        i, j = np.nonzero(apart <= limit)
        pairs.append(np.column_stack([i, j + begin]))
        distances.append(apart[i, j])
    alike, distance = np.concatenate(pairs), np.concatenate(distances)
    scans = np.column_stack([first.scan[alike[:, 0]], second.scan[alike[:, 1]]])
    order = np.lexsort((distance, scans[:, 1], scans[:, 0]))
    alike, scans = alike[order], scans[order]
    changes = np.flatnonzero(np.any(np.diff(scans, axis=0), axis=1)) + 1
    for group in np.split(np.arange(len(alike)), changes):
        if len(group) >= AGREE:
            i, j = alike[group[:CLOSEST]].T
            one, other = (int(n) for n in scans[group[0]])
            agree, shift = _agreement(i, j, first.place[i] - second.place[j])
            if agree >= AGREE:
                common = _common(first.of_scan(one) - shift, second.of_scan(other))
                yield Match(one, other, agree, max(agree, common))


def _agreement(i: NDArray[np.int64], j: NDArray[np.int64], shifts: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """How many key points of either scan agree on one translation, and that translation (mm)."""
    near = np.all(np.abs(shifts[:, None] - shifts) <= NEAR, axis=2)
    best = np.flatnonzero(near[near.sum(axis=1).argmax()])
    return min(len(np.unique(i[best])), len(np.unique(j[best]))), np.median(shifts[best], axis=0)


def _common(first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Key points in the region that both scans hold, as far as their key points reach: of the scan that has fewer there."""
    low = np.maximum(first.min(axis=0), second.min(axis=0)) - PITCH / 2
    high = np.minimum(first.max(axis=0), second.max(axis=0)) + PITCH / 2
    return min(int(((places >= low) & (places <= high)).all(axis=1).sum()) for places in (first, second))
