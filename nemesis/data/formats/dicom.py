"""A DICOM series of CT: the files of one folder that carry its SeriesInstanceUID, one slice each; pydicom reads, GDCM decodes.

What a message says is wrong holds numbers of the geometry and nothing that could name a patient: no value of the header, and no
file's name, which stands in the fault's place alone, for pages leave that out.
"""

from __future__ import annotations

import io
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats.decoding import CONVERT, Decoder, Picture
from nemesis.data.formats.raster import AGAIN, LPS, Raster, check_regular, refusal
from nemesis.data.formats.streams import rescaled
from nemesis.data.store import AIR
from nemesis.errors import Fault, NemesisError

HEADER = 1 << 20  # bytes of a file before its pixels, at most
DEFLATED = b"1.2.840.10008.1.2.1.99"  # the one encoding that is unpacked before it can be looked at
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # CT in one file of many frames
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and what begins so
PICTURES = {"SCREEN SAVE", "MIP", "MAX_IP", "MINIP", "MIN_IP", "VOLUME_RENDERED", "VRT", "DOSE_INFO"}  # in ImageType
TAGS = ["SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "NumberOfFrames",
        "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
        "ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelRepresentation", "PixelPaddingValue",
        "PixelPaddingRangeLimit", "BitsAllocated", "BitsStored", "HighBit"]  # fmt: skip
LAST = 0x0028FFFF  # no tag of TAGS comes after it
SAME_PLACE = 0.01  # mm between slices that are one
ANGLE = 1e-3  # by which direction cosines may differ, their product from 0 and their length from 1
UNEVEN = 0.1  # share of the slices' distance by which one may lie off its place
SIDEWAYS = 0.5  # pixels by which one may
NO_ENDING = {"LICENSE", "README", "VERSION", "DICOMDIR", "LOCKFILE"}  # files that belong to no series


@dataclass(frozen=True)
class _Slice:
    """What the header of one file says; ``position`` and the rows of ``directions`` (along i, along j) are LPS mm."""

    picture: Picture
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    pixel: tuple[float, float]  # mm along i and along j
    slope: float
    intercept: float
    padding: tuple[int, int] | None  # stored values from … to …
    size: int  # bytes of the file

    @property
    def path(self) -> Path:
        return self.picture.path


def read_header(path: Path, root: Path | None = None) -> Any:
    """The dataset of one file, of which only ``TAGS`` are kept, or None where it is not DICOM (or a DICOMDIR).

    Raises:
        NemesisError: it cannot be read, or leads out of ``root``.
    """
    return _header(path, root)[0]


def _header(path: Path, root: Path | None) -> tuple[Any, int, int]:
    """See :func:`read_header`; and where the pixels begin and how many bytes they take, as the file says."""
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE  # its warnings print what the header says, perhaps of the patient
    check_regular(path, root)
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})", AGAIN, passing=True) from None
    if head[128:132] != b"DICM":
        return None, 0, 0
    if DEFLATED in head:
        raise refusal(path, "is deflated as a whole", "Store it in another DICOM encoding (gdcmconv --raw).")
    try:
        dataset, start = _parsed(head)
        if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            return None, 0, 0
        implicit, little = dataset.original_encoding
    except Exception as error:  # its text might hold what the header says of the patient
        raise refusal(path, f"cannot be read as DICOM ({type(error).__name__})", AGAIN) from None
    order = "<" if little else ">"
    element = head[start : start + 12]
    if len(element) == 12 and struct.unpack(order + "2H", element[:4]) == (0x7FE0, 0x0010):
        size = 8 if implicit else 12
        return dataset, start + size, struct.unpack(order + "I", element[size - 4 : size])[0]
    return dataset, 0, 0


def _parsed(head: bytes) -> tuple[Any, int]:
    """The dataset that a file begins with, and where its pixels do; nothing behind ``head`` is parsed, so nobody can make that
    long."""
    from pydicom.filereader import dcmread, read_partial
    from pydicom.tag import Tag

    stream = io.BytesIO(head)
    try:
        return dcmread(stream, stop_before_pixels=True, specific_tags=TAGS), stream.tell()
    except Exception:
        if len(head) < HEADER:
            raise
        # contours and segments fill megabytes, and such a list without a length ends nowhere; what is wanted stands before it
        stream.seek(0)
        return read_partial(stream, lambda tag, *_: tag > LAST, specific_tags=[Tag(name) for name in TAGS]), len(head)


def open_series(folder: Path, series: str | None, root: Path | None) -> Raster:
    """Read the headers of a series, whose files lie in the folder itself.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`.
    """
    found, notes = _slices(folder, series, root), list[str]()
    others = [one for one in found if isinstance(one, str)]
    slices = [one for one in found if isinstance(one, _Slice)]
    if not slices:
        raise refusal(folder, f"is {others[0]}, not a scan", "Name a series of axial slices.")
    notes += [f"{number} image(s) in the series were left out: each is {what}" for what, number in Counter(others).items()]
    first = slices[0]
    for one in slices[1:]:
        for said, alike in {
            "shape": one.picture.shape == first.picture.shape,
            "pixel spacing": np.allclose(one.pixel, first.pixel, rtol=ANGLE),
            "orientation": np.abs(one.directions - first.directions).max() <= ANGLE,
        }.items():
            if not alike:
                what = f"has another {said} than the first slice, though both belong to one series"
                raise refusal(one.path, what, f"Separate the two, or convert the series: {CONVERT}")
    places, step = _placed(folder, slices)
    rows, columns = first.picture.shape
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.directions[0] * first.pixel[0], first.directions[1] * first.pixel[1]
    affine[:3, 2], affine[:3, 3] = step, places[0][0].position
    claimed = 2 * rows * columns * len(slices)
    shape, on_disk = (columns, rows, len(places)), sum(one.size for one in slices)
    return Raster(folder, shape, LPS @ affine, _Slabs(places, notes), True, claimed, on_disk, notes)


def _slices(folder: Path, series: str | None, root: Path | None) -> list[_Slice | str]:
    """The files of the series; of what is no slice, what it is."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise refusal(folder, what, "Check the folder and its permissions.", passing=True) from None
    headers = {path: _header(path, root or folder) for path in paths}
    read = {path: header for path, header in headers.items() if header[0] is not None}
    endings = {_ending(path) for path in read}
    for path in paths:
        if path not in read and _ending(path) in endings and path.stem.upper() not in NO_ENDING:
            raise refusal(path, "is not DICOM, though the slices beside it are", f"{AGAIN} Or remove it.")
    if not read:
        raise refusal(folder, "cannot be read: it holds no DICOM file", "Give a file, or the folder that holds the slices.")
    of = {path: str(header[0].get("SeriesInstanceUID", None) or "") for path, header in read.items()}
    every = set(of.values())
    for path, uid in of.items():
        if not uid and len(every) > 1:  # where all were emptied, the folder stands for the series
            what = "has no SeriesInstanceUID, which others beside it have, so it belongs nowhere"
            raise refusal(path, what, f"{AGAIN} Or remove it.")
    if series is None and len(every) > 1:
        what = f"holds {len(every)} DICOM series"
        raise refusal(folder, what, "Put each into a folder of its own, or name the SeriesInstanceUID.")
    if series is not None and series not in every:
        raise refusal(folder, "does not hold the series that was asked for", "List the dataset again.")
    return [_checked(path, *header) for path, header in read.items() if series in (None, of[path])]


def _ending(path: Path) -> str:
    """Lower-case; none where a name ends in a number, as those after a UID do."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def _checked(path: Path, header: Any, start: int, length: int) -> _Slice | str:
    """What one file says; of what is no slice though it may lie in a series, what it is."""
    try:
        return _facts(path, header, start, length)
    except NemesisError:
        raise
    except Exception as error:  # pydicom converts values when they are asked for
        raise refusal(path, f"its DICOM header makes no sense ({type(error).__name__})", AGAIN) from None


def _facts(path: Path, header: Any, start: int, length: int) -> _Slice | str:
    kind, modality = str(header.get("SOPClassUID", "")), str(header.get("Modality", ""))
    image_type = {str(value).upper() for value in header.get("ImageType", None) or ()}
    if modality != "CT":
        raise refusal(path, f"its modality is {modality[:4]!r}, not CT", "Name a CT series; this suite takes nothing else.")
    if kind.startswith(CAPTURE):
        return "a secondary capture (a picture of a screen)"
    if image_type & PICTURES:
        return f"a derived picture ({', '.join(sorted(image_type & PICTURES))})"
    if "LOCALIZER" in image_type:
        return "a localiser (scout)"
    if kind in ENHANCED or int(header.get("NumberOfFrames", None) or 1) != 1:
        raise refusal(path, "holds many frames in one file (enhanced DICOM)", CONVERT)
    meaning = str(header.get("PhotometricInterpretation", ""))
    if header.get("SamplesPerPixel", 1) != 1 or meaning not in ("MONOCHROME1", "MONOCHROME2"):
        raise refusal(path, "holds colour, not HU", "Name another series.")
    if meaning == "MONOCHROME1":
        raise refusal(path, "is inverted (MONOCHROME1: low values are bright)", "Export it as MONOCHROME2.")
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if header.get(name, None) in (None, "")]
    if missing:
        what = f"has no {' and no '.join(missing)}, so its values cannot be turned into HU"
        raise refusal(path, what, "Export it from the source again.")
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    unit = str(header.get("RescaleType", None) or "HU").strip().upper()
    if slope == 0 or not math.isfinite(slope + intercept) or unit not in ("HU", "US"):
        what = f"its rescaling (slope {slope:g}, intercept {intercept:g}, type {unit[:16]!r}) does not give HU"
        raise refusal(path, what, "Name another series, or export it again.")
    for name, number in (("ImageOrientationPatient", 6), ("ImagePositionPatient", 3), ("PixelSpacing", 2)):
        values = header.get(name, None)
        if values in (None, "") or len(values) != number or not np.isfinite([float(value) for value in values]).all():
            what = f"has no {name}, so the slices cannot be put in their places"
            raise refusal(path, what, "Export it from the source again.")
    directions = np.array([float(value) for value in header.ImageOrientationPatient]).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > ANGLE:
        raise refusal(path, "its ImageOrientationPatient is no pair of directions at a right angle", AGAIN)
    along_j, along_i = (float(value) for value in header.PixelSpacing)
    if min(along_i, along_j) <= 0:
        raise refusal(path, "its PixelSpacing is not positive", AGAIN)
    if not start:
        raise refusal(path, f"holds no pixels, or they do not begin within {HEADER >> 20} MiB", f"{AGAIN} {CONVERT}")
    bits = int(header.BitsAllocated), int(header.BitsStored), int(header.PixelRepresentation)
    picture = Picture(path, str(header.file_meta.TransferSyntaxUID), start, length, int(header.Rows), int(header.Columns), *bits)
    position = np.array([float(value) for value in header.ImagePositionPatient])
    return _Slice(picture, position, directions, (along_i, along_j), slope, intercept, _padding(header), path.stat().st_size)


def _padding(header: Any) -> tuple[int, int] | None:
    """Stored values that mean: nothing was measured here."""
    value = header.get("PixelPaddingValue", None)
    if value is None:
        return None
    ends = [int(value), int(header.get("PixelPaddingRangeLimit", None) or value)]
    wrap = 1 << int(header.BitsAllocated)
    if header.PixelRepresentation == 1:  # often written as if it were unsigned, and the other way round
        ends = [end - wrap if end >= wrap // 2 else end for end in ends]
    else:
        ends = [end + wrap if end < 0 else end for end in ends]
    return min(ends), max(ends)


def _placed(folder: Path, slices: Sequence[_Slice]) -> tuple[list[list[_Slice]], NDArray[np.float64]]:
    """The slices along their normal, those of one place together, and the step from one place to the next (LPS mm)."""
    normal = np.cross(*slices[0].directions)
    height = {id(one): float(one.position @ normal) for one in slices}
    places: list[list[_Slice]] = []
    for one in sorted(slices, key=lambda one: (height[id(one)], one.path)):
        if places and height[id(one)] - height[id(places[-1][0])] <= SAME_PLACE:
            places[-1].append(one)
        else:
            places.append([one])
    if len(places) == 1:
        return places, normal
    at = np.array([height[id(place[0])] for place in places])
    usual = float(np.median(np.diff(at)))
    again = "Copy the series again. If its source is so, convert and resample it by hand, or leave it out."
    for low, gap in zip(at, np.diff(at), strict=False):
        if gap > 1.5 * usual:
            what = f"slices are missing: {gap:.2f} mm lie between those at {low:.2f} and {low + gap:.2f} mm along the normal, "
            raise refusal(folder, what + f"elsewhere {usual:.2f} mm", again)
    step = (places[-1][0].position - places[0][0].position) / (len(places) - 1)
    distance = float(step @ normal)
    for n, place in enumerate(places):
        for one in place:
            off = one.position - places[0][0].position - n * step
            if abs(off @ normal) > UNEVEN * distance + SAME_PLACE:
                what = f"its series is unevenly spaced: this slice, at {at[n]:.2f} mm along the normal, is "
                raise refusal(
                    one.path, what + f"{abs(off @ normal):.2f} mm from where even steps of {distance:.2f} mm lead", again
                )
            if np.abs(one.directions @ off).max() > SIDEWAYS * min(one.pixel):
                what = f"this slice, at {at[n]:.2f} mm along the normal, is shifted sideways against the others of its series"
                raise refusal(one.path, what, again)
    return places, step


class _Slabs:
    """The slices (1, rows, columns) in HU, one after the other; what was done to them is noted at the end."""

    def __init__(self, places: list[list[_Slice]], notes: list[str]) -> None:
        self.places, self.notes = places, notes

    def __call__(self) -> Iterator[NDArray[Any]]:
        decoder, padded, twice = Decoder(), 0, 0
        try:
            for first, *others in self.places:
                hu, padding = _read(first, decoder)
                for other in others:
                    if not np.array_equal(hu, _read(other, decoder)[0]):
                        both = f"{first.path} and {other.path.name}"
                        what = "two slices lie at the same place but show something else (two phases in one series?)"
                        raise NemesisError(Fault(both, what, "Separate the two."))
                padded += padding
                twice += len(others)
                yield hu[None]
        finally:
            decoder.close()
        if twice:
            self.notes.append(f"{twice} slice(s) were there again with the same pixels and left out")
        if padded:
            self.notes.append(f"{padded} voxels of padding were set to {AIR} HU")


def _read(one: _Slice, decoder: Decoder) -> tuple[NDArray[Any], int]:
    """HU (rows, columns) of a file, and how many of its pixels were padding."""
    stored = decoder(one.picture)
    hu = rescaled(stored, one.slope, one.intercept)
    if one.padding is None:
        return hu, 0
    outside = (stored >= one.padding[0]) & (stored <= one.padding[1])
    changed = outside & (hu != AIR)
    hu = hu.astype(np.int32 if hu.dtype.kind in "iu" else np.float64)
    hu[changed] = AIR
    return hu, int(np.count_nonzero(changed))
