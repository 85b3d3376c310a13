"""From a scan's file, in any format, to HU on the house's axes, with every doubt turned into a fault that a person can mend.

House order (D, H, W): D inferior → superior, H left → right, W posterior → anterior, that is the RAS array transposed
(2, 0, 1). Voxels stream from their file into the one array that is kept, so reading takes its bytes and little more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats import open_raster
from nemesis.data.formats.raster import AGAIN, Raster, by, refusal
from nemesis.data.formats.tilt import upright
from nemesis.data.store import AIR

SLAB = 16  # planes that are resampled at a time
SMALLEST = 8  # voxels along every axis; fewer is a localiser or a single slice, not a volume
LONGEST, LARGEST = 4096, 1 << 30  # voxels along an axis and in all: 2 GiB of HU
UNBACKED, RATIO = 1 << 28, 250  # bytes that a packed file may always unpack to; above them times its size (real CT: 2 to 20)
SPACINGS = (0.1, 30.0)  # mm; outside of it the header's unit is not millimetres
FARTHEST = 1e5  # mm from the origin
LARGEST_SHIFT = 0.1  # voxels by which the corners of scan and label map may lie apart (rounding in their headers)
DARK, SOFT = (-1100, -150), (-150, 250)  # HU ranges of air, lung and the darkest fat; and of soft tissue
DARK_SHARE, SOFT_SHARE = 0.001, 0.01  # least shares of voxels in them; the least on 178 real scans: 0.38 and 0.048
TURNED, TURNED_SHARE = (900, 1100), 0.05  # HU of air with the wrong sign; the most on 178 real scans: 0.006


@dataclass(frozen=True)
class Volume:
    """hu: int16 (D, H, W); spacing: mm, (D, H, W); affine: 4×4, index in the RAS array hu.transpose(1, 2, 0) → mm."""

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    stored: NDArray[np.float64] | None = None  # of one that was read: the affine of its file, on the file's own axes
    notes: tuple[str, ...] = ()  # what was done to it that a person should know
    leaned: bool = False  # its planes were moved, so a pixel of the file is not the same voxel here


def read_volume(path: Path, series: str | None = None, root: Path | None = None) -> Volume:
    """Read a CT scan, reoriented to the nearest house axes, rescaled to HU by the header's slope and intercept.

    Args:
        path: a NIfTI, NRRD or MetaImage file, or the folder of a DICOM series.
        series: SeriesInstanceUID, where the folder holds several.
        root: see :func:`nemesis.data.formats.open_raster`.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`; implausible voxel size, too small or too large, values that
            are not HU.
    """
    raster, place = _opened(path, series, root, AIR, linear=True)
    if min(place.shape) < SMALLEST:
        what = f"is too small ({by(place.shape)} voxels)"
        raise refusal(path, what, f"A scan has at least {SMALLEST} along each axis.")
    _check_backed(raster)
    hu = _room(path, place.shape, np.int16)
    view = place.of_file(hu)
    lows, highs, k = [], [], 0
    for slab in raster.slabs():
        if slab.dtype != np.int16:
            low, high = slab.min(), slab.max()
            if not np.isfinite(low) or not np.isfinite(high):
                what = "holds values that are not numbers (NaN or infinite)"
                raise refusal(path, what, "Convert it from the source again.")
            if low < -32768 or high > 32767:
                raise refusal(path, f"values from {low:g} to {high:g} are not HU", "Convert it to HU.")
            if slab.dtype.kind == "f":
                lows.append(low)
                highs.append(high)
                slab = np.rint(slab)
        view[k : k + len(slab)] = slab
        k += len(slab)
    if lows and min(lows) >= 0 and max(highs) <= 1:
        raise refusal(path, "is not CT in HU: all values lie in 0 to 1", "Give the scan before windowing.")
    reason = not_ct(hu)
    if reason:
        remedy = "Convert it to HU (with the rescale slope and intercept) if it is CT; this suite takes nothing else."
        raise refusal(path, f"is not CT in HU: {reason}", remedy)
    return Volume(hu, place.spacing, place.affine, raster.affine, tuple(raster.notes), place.leaned)


def not_ct(hu: NDArray[np.int16]) -> str | None:
    """Why an int16 (D, H, W) array cannot be CT in HU, or None.

    Any CT of a body holds something as dark as air, lung or the darkest fat, and soft tissue; a crop to the body with
    −1024 around it does, too. MR, PET, pictures, z-scored scans and CT stored without its intercept have hardly
    anything from −1100 to −150; the lower bound keeps padding such as −2000 from passing for air. What is air in CT
    shines at +1000 where the sign was turned.
    """
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        return f"every value is {low}"
    if low >= 0:
        usual = ", as in MR, in pictures and in CT without its rescale intercept"
        return f"no value is negative ({low} to {high}){_unscaled(hu) or usual}"
    turned = _share(hu, *TURNED)
    if turned > max(TURNED_SHARE, 10 * _share(hu, -TURNED[1], -TURNED[0])) and _share(hu, -150, 0) > SOFT_SHARE:
        return f"it is inverted: {turned:.1%} of its values lie from {TURNED[0]} to {TURNED[1]}, as air does with the wrong sign"
    dark, soft = _share(hu, *DARK), _share(hu, *SOFT)
    said = f"of its values ({low} to {high}) only "
    if dark < DARK_SHARE:
        return f"{said}{dark:.2%} lie from {DARK[0]} to {DARK[1]}, as air and lung do{_unscaled(hu)}"
    if soft < SOFT_SHARE:
        return f"{said}{soft:.2%} lie from {SOFT[0]} to {SOFT[1]}, as soft tissue does{_unscaled(hu)}"
    return None


def _share(hu: NDArray[np.int16], low: int, high: int) -> float:
    """Share of values from ``low`` to below ``high``; plane by plane, for a comparison makes an array of its own."""
    return sum(int(np.count_nonzero((plane >= low) & (plane < high))) for plane in hu) / hu.size


def _unscaled(hu: NDArray[np.int16]) -> str:
    """A hint where values 1024 lower would have air, and CT's peak of soft tissue with less on both sides of it."""
    peak, beside = _share(hu, 924, 1124), max(_share(hu, 524, 724), _share(hu, 1374, 1574))
    if peak < max(SOFT_SHARE, 2 * beside) or _share(hu, 0, 200) < DARK_SHARE:
        return ""
    return "; it looks like CT whose rescale intercept (−1024) was not applied"


def read_labels(path: Path, like: Volume | None, root: Path | None = None) -> NDArray[Any]:
    """Read a label map as uint8, or uint16 where numbers exceed 255, (D, H, W), on the grid of its scan.

    Without the scan (``like=None``, where that is faulty itself) the map is checked alone.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`; values that are not whole numbers ≥ 0, another shape or
            place than the scan's.
    """
    raster, place = _opened(path, None, root, 0, linear=False)
    if like is None:
        _check_backed(raster)
    else:
        _check_like(path, place, like)
    labels = _room(path, place.shape, np.uint8)
    k = 0
    for slab in raster.slabs():
        with np.errstate(invalid="ignore"):
            if slab.dtype.kind == "f" and not (np.isfinite(slab).all() and bool((slab == np.rint(slab)).all())):
                what = "is no label map: some of its values are not whole numbers"
                raise refusal(path, what, "Export it without interpolation.")
        low, high = slab.min(), slab.max()
        if low < 0 or high > 65535:
            raise refusal(path, f"label numbers from {low:g} to {high:g} are outside 0 to 65535", "Is this a label map?")
        if high > 255 and labels.dtype == np.uint8:
            labels = labels.astype(np.uint16)
        place.of_file(labels)[k : k + len(slab)] = slab
        k += len(slab)
    return labels


def _check_like(path: Path, place: _Place, like: Volume) -> None:
    """Refuse a label map that is not where its scan is."""
    if place.shape != like.hu.shape:
        what = f"has another shape than its scan ({by(place.shape)} against {by(like.hu.shape)} voxels, D×H×W)"
        raise refusal(path, what, "Give the map on the grid of the scan (resample it, or find the right one).")
    last = np.array(place.shape)[[1, 2, 0]] - 1
    corners = np.array([[x, y, z, 1.0] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    shift = np.abs((corners @ (place.affine - like.affine).T)[:, :3]).max()
    if shift > LARGEST_SHIFT * min(like.spacing):
        what = f"lies elsewhere than its scan (by up to {shift:.3g} mm, after their headers)"
        raise refusal(path, what, "Give both the same affine if they belong together.")


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
    return Volume(hu, spacing, volume.affine @ change, notes=volume.notes), moved


def resample_onto(volume: Volume, like: Volume) -> Volume:
    """A scan that :func:`resample` made of ``like``, back on the voxels of ``like`` (linear)."""
    if volume.hu.shape == like.hu.shape:
        return Volume(volume.hu, like.spacing, like.affine, like.stored, like.notes)
    step = np.array(like.spacing) / np.array(volume.spacing)
    return Volume(_interpolated(volume.hu, step, like.hu.shape), like.spacing, like.affine, like.stored, like.notes)


def _interpolated(hu: NDArray[np.int16], step: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.int16]:
    """HU (linear) on ``shape`` voxels (D, H, W) of ``step`` old ones each."""
    from scipy.ndimage import affine_transform

    found = np.empty(shape, np.int16)
    for first in range(0, shape[0], SLAB):  # of the whole, float32 and its rounding would take four times the memory
        slab = found[first : first + SLAB]
        place = _placed(step, slab.shape)
        place["offset"] = place["offset"] + step * [first, 0, 0]
        slab[:] = np.rint(affine_transform(hu, order=1, output=np.float32, **place))
    return found


def _placed(step: NDArray[np.float64], shape: tuple[int, ...]) -> dict[str, Any]:
    # the outer faces of both grids meet, so the first centres do not
    return {"matrix": step, "offset": (step - 1) / 2, "output_shape": shape, "mode": "nearest"}


@dataclass(frozen=True)
class _Place:
    """Where a raster goes in the house: shape (D, H, W), spacing (mm, (D, H, W)), affine of the RAS array."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    orientation: NDArray[np.float64]  # nibabel's: the RAS axis and the direction of each of the file's axes
    leaned: bool

    def of_file(self, house: NDArray[Any]) -> NDArray[Any]:
        """A view (k, j, i) of the house array, as the file's planes come."""
        axes, flips = self.orientation[:, 0].astype(int), self.orientation[:, 1]
        of_file = house.transpose(1, 2, 0).transpose(axes)
        return of_file[tuple(slice(None, None, int(flip)) for flip in flips)].T


def _opened(path: Path, series: str | None, root: Path | None, fill: float, linear: bool) -> tuple[Raster, _Place]:
    """The upright raster, nothing of whose voxels has been read, and its place; refused if that is implausible."""
    from nibabel import orientations

    turn: Any = orientations  # nibabel is annotated by halves
    raster = open_raster(path, series, root)
    spacing = np.linalg.norm(raster.affine[:3, :3], axis=0)
    if not np.abs(raster.affine).max() <= FARTHEST or not all(SPACINGS[0] <= s <= SPACINGS[1] for s in spacing):
        raise refusal(path, f"has an implausible voxel size or place ({by(np.round(spacing, 4))} mm)", "Mend its header.")
    if abs(np.linalg.det(raster.affine[:3, :3] / spacing)) < 0.1:
        raise refusal(path, "its affine collapses the volume", "Mend its header.")
    found, raster = raster, upright(raster, fill, linear)
    if max(raster.shape) > LONGEST or math.prod(raster.shape) > LARGEST:
        what = f"is too large ({by(raster.shape)} voxels)"
        raise refusal(path, what, f"A scan has at most {LONGEST} voxels along an axis and {LARGEST >> 20} Mi in all.")
    orientation = turn.io_orientation(raster.affine)
    affine = raster.affine @ turn.inv_ornt_aff(orientation, raster.shape)
    x, y, z = (raster.shape[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3))
    mm = [float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)]
    return raster, _Place((z, x, y), (mm[2], mm[0], mm[1]), affine, orientation, raster is not found)


def _check_backed(raster: Raster) -> None:
    """Refuse a small file that says it holds much, before room is made for it."""
    claimed, there = raster.bytes_claimed, raster.bytes_on_disk
    if not raster.packed and claimed > there:
        raise refusal(raster.path, f"is truncated (its voxels take {claimed} bytes, and {there} are there)", AGAIN)
    if claimed > max(UNBACKED, RATIO * there):
        what = f"says that {there} bytes unpack to {claimed}, which no CT does"
        raise refusal(raster.path, what, "Store it unpacked if that is true.")


def _room(path: Path, shape: tuple[int, int, int], dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """An array to be filled; pages of it exist only once voxels arrive."""
    try:
        return np.empty(shape, dtype)
    except MemoryError:
        what = f"does not fit into memory ({by(shape)} voxels)"
        raise refusal(path, what, "Read it where more memory is free, or with fewer workers.", passing=True) from None
