"""Scans at a voxel size of a method's own: resampled once from the store, and kept there beside the scans themselves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nemesis.data.foreground import Position

Spacing = tuple[float, float, float]  # mm, (D, H, W)


def view_name(spacing: Spacing) -> str:
    """What is added to the names of a view's files: `@1.5x1.5x1.5`."""
    return "@" + "x".join(f"{mm:g}" for mm in spacing)


def windows(
    start: Sequence[int], extent: Sequence[int], shape: Sequence[int], view_shape: Sequence[int], edge: int
) -> list[tuple[Position, Position]]:
    """Where a box of a scan lies in its view: first voxels and sizes of windows of at most ``edge`` voxels that cover it.

    The outer faces of a scan and of its view are the same, so boxes that tile the one tile the other. A box longer than ``edge``
    is covered by windows of ``edge``, as few as it takes and evenly spread, which may overlap; a shorter one is one window.

    Args:
        start: first voxel of the box in the scan, (D, H, W).
        extent: voxels of the box, inside the scan.
        shape: voxels of the scan.
        view_shape: voxels of the view.
        edge: voxels that a method takes along each axis.
    """
    along_axes = []
    for first, n, whole, view in zip(start, extent, shape, view_shape, strict=True):
        begin, end = (round(place * view / whole) for place in (first, first + n))
        begin, end = min(begin, view - 1), max(end, min(begin, view - 1) + 1)
        size = min(edge, end - begin)
        starts = np.linspace(begin, end - size, -(-(end - begin) // edge))
        along_axes.append([(round(place), size) for place in starts])
    found = []
    for (d, depth), (h, height), (w, width) in itertools.product(*along_axes):
        found.append(((d, h, w), (depth, height, width)))
    return found
