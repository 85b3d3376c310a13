"""From a NIfTI file to HU on the house's axes, with every doubt turned into a fault that a person can mend.

House order (D, H, W): D inferior → superior, H left → right, W posterior → anterior, that is the RAS array transposed
(2, 0, 1).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.errors import Fault, NemesisError

SMALLEST = 8  # voxels along every axis; fewer is a localiser or a single slice, not a volume
SPACINGS = (0.1, 30.0)  # mm; outside of it the header's unit is not millimetres
LARGEST_SHIFT = 0.1  # voxels by which the corners of scan and label map may lie apart (rounding in their headers)
AIR, SOFT = (-1100, -150), (-150, 250)  # HU ranges of air, lung and the darkest fat; and of soft tissue
AIR_SHARE, SOFT_SHARE = 0.001, 0.01  # least shares of voxels in them; the least on 178 real scans: 0.38 and 0.048


@dataclass(frozen=True)
class Volume:
    """hu: int16 (D, H, W); spacing: mm, (D, H, W); affine: 4×4, index in the RAS array hu.transpose(1, 2, 0) → mm."""

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    stored: NDArray[np.float64] | None = None  # of one that was read: the affine of its file, on the file's own axes


def read_volume(path: Path) -> Volume:
    """Read a CT scan, reoriented to the nearest house axes, rescaled to HU by the header's slope and intercept.

    Raises:
        NemesisError: truncated or corrupt file, not 3D, no orientation, implausible voxel size, too small, values that
            are not HU.
    """
    array, spacing, affine, stored = _read(path)
    if min(array.shape) < SMALLEST:
        what = f"is too small ({_by(array.shape)} voxels)"
        raise _refusal(path, what, f"A scan has at least {SMALLEST} along each axis.")
    if array.dtype != np.int16:
        if not np.isfinite(array).all():
            what = "holds values that are not numbers (NaN or infinite)"
            raise _refusal(path, what, "Convert it from the source again.")
        if array.min() < -32768 or array.max() > 32767:
            raise _refusal(path, f"values from {array.min():g} to {array.max():g} are not HU", "Convert it to HU.")
        if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
            raise _refusal(path, "is not CT in HU: all values lie in 0 to 1", "Give the scan before windowing.")
        array = np.rint(array).astype(np.int16)
    reason = not_ct(array)
    if reason:
        remedy = "Convert it to HU (with the rescale slope and intercept) if it is CT; this suite takes nothing else."
        raise _refusal(path, f"is not CT in HU: {reason}", remedy)
    return Volume(array, spacing, affine, stored)


def not_ct(hu: NDArray[np.int16]) -> str | None:
    """Why an int16 (D, H, W) array cannot be CT in HU, or None.

    Any CT of a body holds something as dark as air, lung or the darkest fat, and soft tissue; a crop to the body with
    −1024 around it does, too. MR, PET, pictures, z-scored scans and CT stored without its intercept have hardly
    anything from −1100 to −150; the lower bound keeps padding such as −2000 from passing for air.
    """
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        return f"every value is {low}"
    if low >= 0:
        return f"no value is negative ({low} to {high}), as in MR, in pictures and in CT without its rescale intercept"
    dark = np.count_nonzero((hu >= AIR[0]) & (hu < AIR[1])) / hu.size
    soft = np.count_nonzero((hu >= SOFT[0]) & (hu <= SOFT[1])) / hu.size
    if dark < AIR_SHARE:
        return f"of its values ({low} to {high}) only {dark:.2%} lie from {AIR[0]} to {AIR[1]}, as air and lung do"
    if soft < SOFT_SHARE:
        return f"of its values ({low} to {high}) only {soft:.2%} lie from {SOFT[0]} to {SOFT[1]}, as soft tissue does"
    return None


def read_labels(path: Path, like: Volume | None) -> NDArray[Any]:
    """Read a label map as uint8, or uint16 where numbers exceed 255, (D, H, W), on the grid of its scan.

    Without the scan (``like=None``, where that is faulty itself) the map is checked alone.

    Raises:
        NemesisError: truncated or corrupt file, values that are not whole numbers ≥ 0, another shape or place than the
            scan's.
    """
    array, _, affine, _ = _read(path)
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = np.isfinite(array).all() and bool((array == np.rint(array)).all())
        if not whole:
            what = "is no label map: some of its values are not whole numbers"
            raise _refusal(path, what, "Export it without interpolation.")
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise _refusal(path, f"label numbers from {low:g} to {high:g} are outside 0 to 65535", "Is this a label map?")
    if like is not None:
        if array.shape != like.hu.shape:
            what = f"has another shape than its scan ({_by(array.shape)} against {_by(like.hu.shape)} voxels, D×H×W)"
            raise _refusal(path, what, "Give the map on the grid of the scan (resample it, or find the right one).")
        last = np.array(array.shape)[[1, 2, 0]] - 1
        corners = np.array([[x, y, z, 1.0] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
        shift = np.abs((corners @ (affine - like.affine).T)[:, :3]).max()
        if shift > LARGEST_SHIFT * min(like.spacing):
            what = f"lies elsewhere than its scan (by up to {shift:.3g} mm, after their headers)"
            raise _refusal(path, what, "Give both the same affine if they belong together.")
    return array.astype(np.uint8 if high <= 255 else np.uint16)


def resample(
    volume: Volume, labels: NDArray[Any] | None, spacing: tuple[float, float, float]
) -> tuple[Volume, NDArray[Any] | None]:
    """Scan (linear) and label map (nearest neighbour) on voxels of that size (mm, (D, H, W)) over the same extent."""
    if np.allclose(spacing, volume.spacing, rtol=1e-3):
        return volume, labels
    from scipy.ndimage import affine_transform

    step = np.array(spacing) / np.array(volume.spacing)  # new voxels in units of old ones
    shape = tuple(max(1, round(n / s)) for n, s in zip(volume.hu.shape, step, strict=True))
    place = _placed(step, shape)
    hu = _interpolated(volume.hu, step, shape)
    change = np.diag([*step[[1, 2, 0]], 1.0])
    change[:3, 3] = place["offset"][[1, 2, 0]]
    moved = None if labels is None else affine_transform(labels, order=0, **place)
    return Volume(hu, spacing, volume.affine @ change), moved


def resample_onto(volume: Volume, like: Volume) -> Volume:
    """A scan that :func:`resample` made of ``like``, back on the voxels of ``like`` (linear)."""
    if volume.hu.shape == like.hu.shape:
        return Volume(volume.hu, like.spacing, like.affine, like.stored)
    step = np.array(like.spacing) / np.array(volume.spacing)
    return Volume(_interpolated(volume.hu, step, like.hu.shape), like.spacing, like.affine, like.stored)


def _interpolated(hu: NDArray[np.int16], step: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.int16]:
    """HU (linear) on ``shape`` voxels (D, H, W) of ``step`` old ones each."""
    from scipy.ndimage import affine_transform

    return np.rint(affine_transform(hu, order=1, output=np.float32, **_placed(step, shape))).astype(np.int16)


def _placed(step: NDArray[np.float64], shape: tuple[int, ...]) -> dict[str, Any]:
    # the outer faces of both grids meet, so the first centres do not
    return {"matrix": step, "offset": (step - 1) / 2, "output_shape": shape, "mode": "nearest"}


def _read(path: Path) -> tuple[NDArray[Any], tuple[float, float, float], NDArray[np.float64], NDArray[np.float64]]:
    """(D, H, W) array, spacing in mm (D, H, W), RAS affine and stored affine of a NIfTI-1 or -2 file; integers stay integers."""
    import nibabel
    from nibabel import orientations

    turn: Any = orientations  # nibabel is annotated by halves
    again = "Copy or download it again."
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)  # whole: only then its checksum is looked at
    except EOFError:
        raise _refusal(path, "is truncated (the gzip stream ends early)", again) from None
    except OSError as error:  # gzip.BadGzipFile is one
        raise _refusal(path, f"cannot be read ({error.strerror or error})", again) from None
    except Exception as error:  # zlib.error
        raise _refusal(path, f"is corrupt ({error})", again) from None
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    sizes = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")} & set(kinds)
    if not sizes:
        raise _refusal(path, "is not NIfTI", "Give .nii or .nii.gz files (dcm2niix converts DICOM).")
    try:
        image = kinds[sizes.pop()].from_bytes(data)
        header: Any = image.header
        affine = image.affine
        shape = tuple(image.shape)
        if len(shape) < 3 or any(n != 1 for n in shape[3:]):
            raise _refusal(path, f"is not a volume: its shape is {_by(shape)}", "Give one 3D scan per file.")
        if 0 in shape:
            raise _refusal(path, "holds no voxel", again)
        if header.get_data_dtype().kind not in "iuf":
            raise _refusal(path, f"holds {header.get_data_dtype()} values (colour or complex)", "Give scalar voxels.")
        stored: Any = image.dataobj
        unscaled = stored.slope == 1 and stored.inter == 0
        array = np.asanyarray(stored) if unscaled else np.asarray(stored, np.float32)
        array = array.reshape(shape[:3])
    except NemesisError:
        raise
    except Exception as error:  # nibabel raises many kinds, and a damaged header leads anywhere
        raise _refusal(path, f"cannot be read as NIfTI ({type(error).__name__}: {error})", again) from None
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        what = "does not say how the patient lies (sform and qform codes are 0), so left and right are unknown"
        raise _refusal(path, what, "Convert it from the source again, or set its sform if you know it.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not all(SPACINGS[0] <= s <= SPACINGS[1] for s in spacing):
        raise _refusal(path, f"has an implausible voxel size ({_by(np.round(spacing, 4))} mm)", "Mend its header.")
    orientation = turn.io_orientation(affine)
    if np.isnan(orientation).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise _refusal(path, "its affine collapses the volume", "Mend its header.")
    stored_affine, affine = affine, affine @ turn.inv_ornt_aff(orientation, shape[:3])
    array = turn.apply_orientation(array, orientation).transpose(2, 0, 1)
    x, y, z = (float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return np.ascontiguousarray(array), (z, x, y), affine, stored_affine


def _refusal(path: Path, what: str, remedy: str) -> NemesisError:
    return NemesisError(Fault(str(path), what, remedy))


def _by(shape: Any) -> str:
    return "×".join(str(n) for n in shape)
