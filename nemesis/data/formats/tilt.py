"""A leaning gantry undone: slices that are not stacked along their normal are moved within their planes until they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats.raster import Raster, refusal

NEGLIGIBLE = 0.5  # voxels by which the last plane may lie off the first one's normal
ANGLE = 1e-3  # cosine between rows and columns that passes for a right angle


def upright(raster: Raster, fill: float, linear: bool) -> Raster:
    """The same volume on axes at right angles: every plane (j, i) shifted, by linear interpolation or to the nearest voxel.

    The planes grow by what the lean moves the last one, and hold ``fill`` where nothing was measured. A raster that does not
    lean is returned itself.

    Raises:
        NemesisError: rows and columns are not at a right angle.
    """
    vectors = raster.affine[:3, :3]
    along_i, along_j, step = (vectors[:, n] for n in range(3))
    size = np.linalg.norm(vectors, axis=0)
    if abs(along_i @ along_j) > ANGLE * size[0] * size[1]:
        what = "its axes are not at right angles (sheared within a plane)"
        raise refusal(raster.path, what, "Resample it onto a straight grid.")
    last = raster.shape[2] - 1
    lean = np.array([step @ along_i / size[0] ** 2, step @ along_j / size[1] ** 2])  # voxels (i, j) per plane
    if np.abs(lean * last).max() <= NEGLIGIBLE:
        return raster
    start = np.minimum(0.0, lean * last)  # where the first voxel of the new planes lies on the first plane's old ones
    grown = [n + math.ceil(abs(x) * last - 1e-6) for n, x in zip(raster.shape[:2], lean, strict=True)]
    sideways = along_i * lean[0] + along_j * lean[1]
    affine = raster.affine.copy()
    affine[:3, 2] = step - sideways
    affine[:3, 3] += along_i * start[0] + along_j * start[1]

    def slabs() -> Iterator[NDArray[Any]]:
        k = 0
        for slab in raster.slabs():
            for plane in slab:
                moved = _shifted(plane, lean[1] * k - start[1], grown[1], fill, linear)
                yield _shifted(moved.T, lean[0] * k - start[0], grown[0], fill, linear).T[None]
                k += 1

    angle = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(np.linalg.norm(step - sideways))))
    raster.notes.append(f"a gantry tilt of {angle:.1f}° was undone")
    return replace(raster, shape=(grown[0], grown[1], raster.shape[2]), affine=affine, slabs=slabs)


def _shifted(plane: NDArray[Any], by: float, length: int, fill: float, linear: bool) -> NDArray[Any]:
    """A plane (n, m) moved ``by`` ≥ 0 voxels along its first axis, which then has ``length``; half a voxel of rim blends with
    ``fill``."""
    n, whole = len(plane), math.floor(by + 1e-6) if linear else round(by)
    part = max(0.0, by - whole) if linear else 0.0
    if not linear:
        moved = np.full((length, plane.shape[1]), fill, plane.dtype)
        moved[whole : whole + n] = plane
        return moved
    above = np.zeros((length, plane.shape[1]), np.float32)
    above[whole : whole + n] = (1 - part) * (plane - np.float32(fill))
    if part > 1e-6:
        above[whole + 1 : whole + 1 + n] += part * (plane - np.float32(fill))
    return above + np.float32(fill)
