"""The XML of LIDC-IDRI (Armato et al., Medical Physics 38, 2011): nodules as up to four readers outlined them.

A nodule of at least 3 mm is outlined slice by slice, by the pixels just outside of it; smaller ones and non-nodules are single
points, which mark no voxels. Coordinates are columns and rows of the slice, from 0. Chest radiographs of the set have an XML
of another kind, which is none of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.readers import Volume
from nemesis.errors import Fault, NemesisError

NODULE = "nodule"
LARGEST = 1 << 25  # bytes; the set's own stay below 2 MB
OFF_SLICE = 0.1  # slices by which a position may lie beside one
AGAIN = "Download the XML again; it belongs to exactly this series."


@dataclass(frozen=True)
class _Outline:
    """One region of a nodule in one slice: height in mm (z of the patient), whether it belongs to it, (column, row) points."""

    z: float
    inside: bool
    points: NDArray[np.int64]


def series_of(path: Path) -> str | None:
    """SeriesInstanceUID of the CT series that an XML annotates, or None where it annotates none.

    Raises:
        NemesisError: it is no XML, or too large.
        OSError: it cannot be read.
    """
    root = _parsed(path)
    if _name(root) != "LidcReadMessage":
        return None
    return next((str(each.text or "").strip() for each in root.iter() if _name(each) == "SeriesInstanceUid"), None)


def read_nodules(path: Path, volume: Volume | None) -> NDArray[np.uint8] | None:
    """1 where at least half of the readers saw nodule, else 0: uint8 (D, H, W) on the grid of the scan.

    An outline itself belongs to what surrounds the region: to no nodule, or, around a region that is cut out of one
    (inclusion FALSE), to it. Without the scan (``None``, where that is faulty itself) the XML is checked alone.

    Raises:
        NemesisError: it cannot be read, annotates nothing, or its outlines do not lie in slices of the scan.
    """
    try:
        root = _parsed(path)
        readers = [list(_nodules(path, session)) for session in root if _name(session) == "readingSession"]
    except OSError as error:
        raise NemesisError(Fault(str(path), f"cannot be read ({error.strerror or error})", AGAIN, passing=True)) from None
    if not 0 < len(readers) < 100:
        raise _refusal(path, f"holds {len(readers)} reading sessions")
    if volume is None:
        return None
    votes = np.zeros(volume.hu.shape, np.uint8)
    for nodules in readers:
        seen: dict[int, NDArray[np.bool_]] = {}
        for outlines in nodules:
            for plane, mask in _filled(path, outlines, volume).items():
                seen[plane] = seen[plane] | mask if plane in seen else mask
        for plane, mask in seen.items():
            votes[plane] += mask
    return (2 * votes >= len(readers)).astype(np.uint8)


def _nodules(path: Path, session: Any) -> Iterator[list[_Outline]]:
    """The outlines of each nodule of at least 3 mm that one reader marked."""
    for nodule in session:
        if _name(nodule) == "unblindedReadNodule":
            outlines = [_outline(path, roi) for roi in nodule if _name(roi) == "roi"]
            if any(len(outline.points) > 1 for outline in outlines):
                yield outlines


def _outline(path: Path, roi: Any) -> _Outline:
    told = {_name(part): str(part.text or "").strip() for part in roi}
    points = [{_name(part): part.text for part in edge} for edge in roi if _name(edge) == "edgeMap"]
    try:
        z, inside = float(told["imageZposition"]), told["inclusion"].upper()
        columns_and_rows = np.array([[int(point["xCoord"]), int(point["yCoord"])] for point in points], np.int64).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _refusal(path, "has an outline without a place (imageZposition, inclusion, xCoord, yCoord)") from None
    if inside not in ("TRUE", "FALSE") or not np.isfinite(z):
        raise _refusal(path, "has an outline without a place (imageZposition, inclusion, xCoord, yCoord)")
    return _Outline(z, inside == "TRUE", columns_and_rows)


def _filled(path: Path, outlines: list[_Outline], volume: Volume) -> dict[int, NDArray[np.bool_]]:
    """Axial slice (index along D) → voxels (H, W) of one nodule."""
    regions: dict[bool, dict[int, NDArray[np.bool_]]] = {True: {}, False: {}}
    for outline in outlines:
        if len(outline.points):
            plane, inner = _inner(path, outline, volume)
            known = regions[outline.inside]
            known[plane] = known[plane] | inner if plane in known else inner
    cut = regions[False]
    return {plane: inner & ~cut[plane] if plane in cut else inner for plane, inner in regions[True].items()}


def _inner(path: Path, outline: _Outline, volume: Volume) -> tuple[int, NDArray[np.bool_]]:
    """The slice, and what lies strictly inside of an outline (H, W)."""
    from scipy.ndimage import binary_fill_holes

    assert volume.stored is not None
    if volume.leaned:
        raise _refusal(path, "outlines pixels of slices that were moved to undo a gantry tilt")
    stored, n = volume.stored, len(outline.points)
    slices = (outline.z - stored[2, 3] - outline.points @ stored[2, :2]) / stored[2, 2] if stored[2, 2] else np.full(n, np.nan)
    on_file = np.column_stack([outline.points, slices, np.ones(n)])
    h, w, d = (on_file @ (np.linalg.inv(volume.affine) @ stored).T)[:, :3].T
    indices = np.column_stack([d, h, w])
    if not np.isfinite(indices).all() or np.abs(indices - np.rint(indices)).max() > OFF_SLICE or np.ptp(np.rint(d)) > 0:
        raise _refusal(path, f"has an outline at z = {outline.z:g} mm, where the scan has no axial slice")
    whole = np.rint(indices)
    if whole.min() < 0 or (whole >= np.array(volume.hu.shape)).any():
        raise _refusal(path, f"has an outline at z = {outline.z:g} mm that leaves the scan")
    whole = whole.astype(np.int64)
    edge = np.zeros(volume.hu.shape[1:], bool)
    places = whole[:, 1:]
    for start, end in zip(places, np.roll(places, -1, axis=0), strict=True):  # neighbours as a rule, but not always
        line = np.rint(np.linspace(start, end, int(np.abs(end - start).max()) + 1)).astype(np.int64)
        edge[line[:, 0], line[:, 1]] = True
    low, high = places.min(0), places.max(0) + 1
    box = slice(low[0], high[0]), slice(low[1], high[1])
    inner = np.zeros_like(edge)
    inner[box] = binary_fill_holes(edge[box]) & ~edge[box]
    return int(whole[0, 0]), inner


def _parsed(path: Path) -> Any:
    """The root element; entities, which could unfold without end, are refused."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    if path.stat().st_size > LARGEST:
        raise _refusal(path, "is too large for an annotation of LIDC-IDRI")
    try:
        return parse(path).getroot()
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise _refusal(path, f"cannot be read as XML ({type(error).__name__})") from None


def _name(element: Any) -> str:
    """Name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _refusal(path: Path, what: str) -> NemesisError:
    return NemesisError(Fault(str(path), what, AGAIN))
