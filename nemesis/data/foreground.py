"""What is empty: one rule everywhere (redraws in training, refusal at ingestion, easy negatives in evaluation).

A box is empty where its mean after windowing, *over the part inside the scan*, lies under the foreground floor. Were padding
counted, a slab of 20 slices full of organs would be empty in a superpatch of 128, and many superpatches that hold organs would
be called easy negatives. A coarse map of a scan decides most boxes without reading a voxel, and never otherwise than the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Position = tuple[int, int, int]
Window = tuple[float, float]
MAP_EDGE = 16  # voxels; of the cubes of the map
LEVELS = 255  # steps of a map's values


def grid(shape: Sequence[int], edge: int | Position) -> NDArray[np.int64]:
    """Starts (N, 3) of the boxes of ``edge`` voxels that tile a volume (D, H, W), padded at its far ends."""
    edges = (edge,) * 3 if isinstance(edge, int) else edge
    starts = itertools.product(*(range(0, n, e) for n, e in zip(shape, edges, strict=True)))
    return np.array(list(starts), dtype=np.int64).reshape(-1, 3)


def extents(shape: Sequence[int], edge: int | Position) -> NDArray[np.int64]:
    """Extent (N, 3) inside the volume of each box of :func:`grid`."""
    return np.minimum(np.array(shape) - grid(shape, edge), edge)


def foreground(hu: NDArray[np.int16], window: Window) -> float:
    """Mean of an int16 HU array after windowing, in [0, 1].

    The window's ends are rounded to whole HU, so that the sum is exact and no crop is empty on one machine only.
    """
    return float(_clipped(hu, window).sum(dtype=np.int64)) / (hu.size * _width(window))


class BlockSums:
    """Exact sums of a scan after windowing, over cubes that tile it; a slab at a time, and each voxel once where cubes nest.

    Args:
        hu: int16 (D, H, W).
        window: HU that become 0 and 1.
    """

    def __init__(self, hu: NDArray[np.int16], window: Window) -> None:
        self.hu, self.window = hu, window
        self._known: dict[int, NDArray[np.int64]] = {}

    def of(self, edge: int) -> NDArray[np.int64]:
        """Sums over the cubes of ``edge`` voxels, smaller ones at the far ends, in HU above the window's lower end."""
        if edge not in self._known:
            nested = [known for known in self._known if edge % known == 0]
            if nested:
                finest = max(nested)
                sums = self._known[finest]
                for axis in range(3):
                    sums = _grouped(sums, edge // finest, axis)
            else:
                slabs = (self.hu[first : first + edge] for first in range(0, self.hu.shape[0], edge))
                sums = np.stack([_slab_sums(_clipped(slab, self.window), edge) for slab in slabs])
            self._known[edge] = sums
        return self._known[edge]

    def map(self) -> NDArray[np.uint8]:
        """Mean after windowing of each cube of :data:`MAP_EDGE` voxels, in steps of 1/255, rounded up: 0 is air."""
        lengths = [np.diff([*range(0, n, MAP_EDGE), n]) for n in self.hu.shape]
        full = _outer(lengths) * _width(self.window)
        return (-(-self.of(MAP_EDGE) * LEVELS // full)).astype(np.uint8)

    def grid_foreground(self, edge: int) -> NDArray[np.float64]:
        """:func:`foreground` (N,) of the boxes of :func:`grid`, each over its part inside the scan."""
        voxels = np.prod(extents(self.hu.shape, edge), axis=1)
        means: NDArray[np.float64] = self.of(edge).ravel() / (voxels * _width(self.window))
        return means

    def brightest(self, edge: int) -> tuple[Position, float]:
        """The crop with most foreground: its start and its :func:`foreground`.

        Searched on starts an eighth of the edge apart (or less, for the steps to divide the edge). Along an axis on which
        the scan is smaller than the edge, the crop starts at 0.
        """
        step = lattice(edge)
        sums, voxels = self.of(step), 1
        for axis, n in enumerate(self.hu.shape):
            if n <= edge:
                sums = sums.sum(axis=axis, keepdims=True)
            else:
                blocks, places = edge // step, (n - edge) // step + 1
                total = np.moveaxis(np.cumsum(sums, axis=axis), axis, 0)
                windows = total[blocks - 1 : blocks - 1 + places].copy()
                windows[1:] -= total[: places - 1]
                sums = np.moveaxis(windows, 0, axis)
            voxels *= min(n, edge)
        best = np.unravel_index(int(sums.argmax()), sums.shape)
        d, h, w = (int(place) * step for place in best)
        return (d, h, w), float(sums[best]) / (voxels * _width(self.window))


def lattice(edge: int) -> int:
    """Voxels between the starts on which the brightest crop of an edge is searched."""
    return max(n for n in range(1, max(1, edge // 8) + 1) if edge % n == 0)


def map_shape(shape: Sequence[int]) -> Position:
    """Cubes (D, H, W) of the map of a scan."""
    d, h, w = (-(-n // MAP_EDGE) for n in shape)
    return d, h, w


def bounds(
    coarse: NDArray[np.uint8], shape: Sequence[int], start: Sequence[int], size: Sequence[int], window: Window
) -> tuple[float, float]:
    """Between which values the :func:`foreground` of a box lies, told from its scan's map alone.

    Of a cube that the box cuts, the part inside holds at least what does not fit into the part outside. Whole numbers up to one
    last division, which the rule does alike: where both ends lie on one side of the floor, so does the rule's own value.

    Args:
        coarse: the map (:meth:`BlockSums.map`).
        shape: of the scan, (D, H, W).
        start: first voxel of the box.
        size: of the box, wholly inside the scan.
        window: the one that the map was made with.
    """
    touched, inside, whole = [], [], []
    for n, first, extent in zip(shape, start, size, strict=True):
        blocks = slice(first // MAP_EDGE, -(-(first + extent) // MAP_EDGE))
        begins = np.arange(blocks.start, blocks.stop, dtype=np.int64) * MAP_EDGE
        ends = np.minimum(begins + MAP_EDGE, n)
        touched.append(blocks)
        whole.append(ends - begins)
        inside.append(np.minimum(ends, first + extent) - np.maximum(begins, first))
    level = coarse[tuple(touched)].astype(np.int64)
    voxels, within = _outer(whole), _outer(inside)
    width = _width(window)
    least = np.maximum((level - 1) * voxels - LEVELS * (voxels - within), 0)  # in voxels of the upper end, times LEVELS
    most = np.minimum(level * voxels, LEVELS * within)
    total = width * int(np.prod(size))
    return float(-(-int(least.sum()) * width // LEVELS)) / total, float(int(most.sum()) * width // LEVELS) / total


def _outer(axes: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    d, h, w = axes
    return d[:, None, None] * h[:, None] * w


def _slab_sums(slab: NDArray[np.uint16], edge: int) -> NDArray[np.int64]:
    """Sums (H, W) over the cubes of a slab of at most ``edge`` planes."""
    along_w = np.add.reduceat(
        slab, range(0, slab.shape[2], edge), axis=2, dtype=np.int64
    )  # the contiguous axis first is the fastest
    return _grouped(along_w, edge, 1).sum(axis=0)


def _grouped(sums: NDArray[np.int64], times: int, axis: int) -> NDArray[np.int64]:
    grouped: NDArray[np.int64] = np.add.reduceat(sums, range(0, sums.shape[axis], times), axis=axis)
    return grouped


def _clipped(hu: NDArray[np.int16], window: Window) -> NDArray[np.uint16]:
    """HU above the window's lower end, cut at its upper one."""
    low, high = _ends(window)
    clipped = np.clip(hu, np.int16(low), np.int16(high))
    np.subtract(clipped, np.int16(low), out=clipped)  # may wrap around in int16, never in uint16
    return clipped.view(np.uint16)


def _ends(window: Window) -> tuple[int, int]:
    low, high = (max(-32768, min(32767, round(end))) for end in window)
    return low, high


def _width(window: Window) -> int:
    low, high = _ends(window)
    return max(1, high - low)
