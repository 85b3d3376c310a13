"""NIfTI-1 and -2 in one file (.nii, .nii.gz); the header by nibabel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats.raster import AGAIN, Raster, one_volume, refusal
from nemesis.data.formats.streams import Bytes, rescaled, voxels
from nemesis.errors import NemesisError

SIZES = {348: b"n+1\0", 540: b"n+2\0"}  # bytes of the header, which begins with their number → its magic
MAGIC_AT = {348: 344, 540: 4}
LONGEST_EXTENSION = 1 << 24  # bytes between header and voxels
LARGEST_SHIFT = 1.0  # voxels by which sform and qform may lie apart


def is_nifti(head: bytes) -> bool:
    """By the first four bytes."""
    return bool(_sizes(head))


def open_nifti(path: Path, packed: bool, bytes_on_disk: int) -> Raster:
    """Read the header.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`.
    """
    head = Bytes([path], packed=packed).read(max(SIZES))
    size = _sizes(head).pop()
    if len(head) < size:
        raise refusal(path, "is truncated (it ends in its header)", AGAIN)
    magic = head[MAGIC_AT[size] :][:4]
    if magic in (b"ni1\0", b"ni2\0"):
        raise refusal(path, "is one half of a .hdr and .img pair", "Convert the pair to one .nii.gz file.")
    if magic != SIZES[size]:
        what = f"cannot be read as NIfTI (its magic is {magic!r}; Analyze 7.5 does not say left from right)"
        raise refusal(path, what, "Convert it from the source again.")
    try:
        header = _parsed(head[:size])
        sized = bool((np.abs(header["pixdim"][1:4]) > 0).all())
        header.check_fix()  # which makes voxels of no size ones of 1 mm
        shape = one_volume(path, tuple(int(n) for n in header.get_data_shape()))
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        start = int(header.get_data_offset())
        affine = np.asarray(header.get_best_affine(), np.float64)
    except NemesisError:
        raise
    except Exception as error:  # nibabel raises many kinds, and a damaged header leads anywhere
        raise refusal(path, f"cannot be read as NIfTI ({type(error).__name__}: {error})", AGAIN) from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise refusal(path, f"holds {dtype} values (colour, complex or too wide)", "Give scalar voxels.")
    if not size + 4 <= start <= size + 4 + LONGEST_EXTENSION:
        raise refusal(path, f"says that its voxels begin at byte {start}", AGAIN)
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        what = "does not say how the patient lies (sform and qform codes are 0), so left and right are unknown"
        raise refusal(path, what, "Convert it from the source again, or set its sform if you know it.")
    if header["sform_code"] <= 0 and not sized:
        raise refusal(path, "does not say how large its voxels are", "Convert it from the source again.")
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        _check_forms(path, header, shape)

    def slabs() -> Iterator[NDArray[Any]]:
        source = Bytes([path], packed=packed)
        source.skip(start)
        for slab in voxels(path, source, shape, dtype):
            yield slab if slope is None else rescaled(slab, slope, intercept)

    return Raster(path, shape, affine, slabs, packed, math.prod(shape) * dtype.itemsize, bytes_on_disk)


def _sizes(head: bytes) -> set[int]:
    return {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")} & set(SIZES)


def _parsed(block: bytes) -> Any:
    import nibabel

    kinds: Any = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    return kinds[len(block)](block, check=False)


def _check_forms(path: Path, header: Any, shape: tuple[int, int, int]) -> None:
    """Refuse a file that says two different places."""
    from nibabel import orientations

    turn: Any = orientations  # nibabel is annotated by halves
    sform = np.asarray(header.get_sform(), np.float64)
    try:
        qform = np.asarray(header.get_qform(), np.float64)
    except Exception:  # its quaternion is none
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(sform).all() or abs(np.linalg.det(sform[:3, :3])) < 1e-12:
        return  # refused for that
    apart = _apart(sform, qform, shape) if np.isfinite(qform).all() else np.inf
    if not apart <= LARGEST_SHIFT:
        names = ["".join(str(code) for code in turn.aff2axcodes(form)) for form in (sform, qform)] if np.isfinite(apart) else []
        said = f"axes {names[0]} and {names[1]}, up to {apart:.3g} voxels apart" if names else "the qform is no rotation"
        what = f"says two places: its sform and its qform disagree ({said})"
        raise refusal(path, what, "Find out which is right (look at the liver's side) and set both to it.")


def _apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
    """Largest distance, in voxels, of the places that two affines give a volume's corners."""
    i, j, k = (n - 1 for n in shape)
    corners = np.array([[a, b, c, 1.0] for a in (0, i) for b in (0, j) for c in (0, k)])
    return float(np.abs((corners @ other.T @ np.linalg.inv(one).T - corners)[:, :3]).max())
