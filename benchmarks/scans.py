"""A scan of 512×512×300 for the benchmarks, of real slices whose values nobody has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANE, SLICES = 512, 300
AFFINE = np.diag([-0.8, -0.8, 1.0, 1.0])


def real_scan(folder: Path, plane: int = PLANE, slices: int = SLICES) -> NDArray[np.int16]:
    """int16 HU (D, H, W): the slices of the scans in a folder whose planes are as large, one scan after another and then
    mirrored, left to right, front to back and both, until there are enough.

    Mirrored slices have the noise of real ones, and gzip, which looks back 32 KiB, finds as little in them; slices in between
    would be smoother than any scanner's.

    Raises:
        SystemExit: there is no such scan, or there are too few slices.
    """
    from nemesis.data.readers import read_volume

    found = [read_volume(path).hu for path in sorted(folder.rglob("image.nii.gz"))]
    together = [hu for hu in found if hu.shape[1:] == (plane, plane)]
    if not together:
        raise SystemExit(f"{folder}: no image.nii.gz of {plane}×{plane} voxels in plane")
    stack = np.concatenate(together)
    stack = np.concatenate([stack, stack[:, ::-1], stack[:, :, ::-1], stack[:, ::-1, ::-1]])[:slices]
    if len(stack) < slices:
        raise SystemExit(f"{folder}: {len(stack)} slices, mirrored ones among them, are less than {slices}")
    return np.ascontiguousarray(stack)


def write_nifti(path: Path, hu: NDArray[np.int16], level: int) -> Path:
    """A scan as `.nii.gz`, compressed as hard as asked for."""
    import nibabel
    from nibabel.openers import Opener

    library: Any = nibabel
    before, Opener.default_compresslevel = Opener.default_compresslevel, level
    try:
        library.save(library.Nifti1Image(hu.transpose(1, 2, 0), AFFINE), path)
    finally:
        Opener.default_compresslevel = before
    return path
