"""MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation): .mha, or .mhd with the voxels beside it; raw or zlib."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats.raster import AGAIN, LPS, Raster, one_volume, refusal
from nemesis.data.formats.streams import Bytes, voxels
from nemesis.data.formats.text import LONGEST, Header, header_lines

TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
         "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # fmt: skip
SAME = {"Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
        "ElementByteOrderMSB": "BinaryDataByteOrderMSB"}  # fmt: skip
BOOL = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def is_metaimage(head: bytes) -> bool:
    """By the beginning of a file: text that sets keys of MetaImage."""
    return re.match(rb"\s*[A-Za-z]+ *=", head) is not None and re.search(rb"(^|\n)(ObjectType|NDims) *=", head) is not None


def open_metaimage(path: Path, bytes_on_disk: int, root: Path | None) -> Raster:
    """Read the header.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`.
    """
    header, names, end = _header(path)
    kind = header.text("ElementType")
    if header.whole("ElementNumberOfChannels", "1") != (1,) or kind.endswith("_ARRAY"):
        raise refusal(path, "holds several values per voxel (colour)", "Give scalar voxels.")
    if kind.removeprefix("MET_") not in TYPES:
        raise header.bad("ElementType")
    if _flag(header, "BinaryData", "True") is False:
        raise refusal(path, "holds its voxels as text", "Save it as binary data.")
    function = ("ElementToIntensityFunctionSlope", "1"), ("ElementToIntensityFunctionOffset", "0")
    if any(header.real(key, header.text(key, usual).split()) != (float(usual),) for key, usual in function):
        raise refusal(path, "scales its voxels (ElementToIntensityFunction), which programs read differently", "Save it in HU.")
    big = _flag(header, "BinaryDataByteOrderMSB", "False")
    dtype = np.dtype(TYPES[kind.removeprefix("MET_")]).newbyteorder(">" if big else "<")
    packed = _flag(header, "CompressedData", "False")
    shape, affine = _grid(header)
    claimed = math.prod(shape) * dtype.itemsize
    paths, start, skip = [path], end, header.whole("HeaderSize", "0")[0]
    if names != ["LOCAL"]:
        (paths, bytes_on_disk), start = header.files(names, root), 0
    if not -1 <= skip <= 1 << 24 or (skip and (packed or len(paths) > 1)):
        raise header.bad("HeaderSize")
    start = max(start, bytes_on_disk - claimed) if skip == -1 else start + skip
    if packed and len(paths) == 1 and header.whole("CompressedDataSize", str(bytes_on_disk - start)) != (bytes_on_disk - start,):
        what = f"its compressed voxels take {bytes_on_disk - start} bytes, not {header.text('CompressedDataSize')[:20]}"
        raise refusal(path, what, AGAIN)

    def slabs() -> Iterator[NDArray[Any]]:
        yield from voxels(path, Bytes(paths, start, packed), shape, dtype)

    return Raster(path, shape, affine, slabs, packed, claimed, bytes_on_disk)


def _header(path: Path) -> tuple[Header, list[str], int]:
    """Keys, the data files' names (or LOCAL), and the byte at which the header ends."""
    text = Bytes([path]).read(LONGEST)
    last = re.search(rb"(^|\n)ElementDataFile *=([^\n]*)(\n|$)", text)
    if last is None:
        raise refusal(path, "its header has no 'ElementDataFile', which ends it", AGAIN)
    values: dict[str, str] = {}
    for number, line in enumerate(header_lines(path, text[: last.end()]), 1):
        key, mark, value = (part.strip() for part in line.partition("="))
        key = SAME.get(key, key)
        if line and not mark:
            raise refusal(path, f"line {number} of its header is no 'key = value'", AGAIN)
        if line and key in values:
            raise refusal(path, f"its header says '{key[:40]}' twice", AGAIN)
        values[key] = value
    named = values["ElementDataFile"]
    if "%" in named:
        raise refusal(path, "keeps its voxels in a numbered series of files", "Save it again as one .mha file.")
    if named.split()[:1] == ["LIST"]:
        return Header(path, values), [line for line in header_lines(path, text[last.end() :]) if line], 0
    return Header(path, values), ["LOCAL" if named.upper() == "LOCAL" else named], last.end()


def _flag(header: Header, key: str, usual: str) -> bool:
    found = BOOL.get(header.text(key, usual).lower())
    if found is None:
        raise header.bad(key)
    return found


def _grid(header: Header) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (i, j, k) and index → RAS mm."""
    path, sizes = header.path, header.whole("DimSize")
    if header.whole("NDims") != (len(sizes),):
        raise header.bad("NDims")
    shape, n = one_volume(path, sizes), len(sizes)
    if "TransformMatrix" not in header.values or "Offset" not in header.values:
        what = "does not say how the patient lies (no TransformMatrix or Offset), so left and right are unknown"
        raise refusal(path, what, "Convert it from the source again, or add them if you know them.")
    rows = header.real("TransformMatrix", header.text("TransformMatrix").split())  # row n: where axis n points
    spacing = header.real("ElementSpacing", header.text("ElementSpacing").split())
    origin = header.real("Offset", header.text("Offset").split())
    for key, found, wanted in (("TransformMatrix", rows, n * n), ("ElementSpacing", spacing, n), ("Offset", origin, n)):
        if len(found) != wanted:
            raise header.bad(key)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(rows, (n, n))[:3, :3].T * np.array(spacing[:3])
    affine[:3, 3] = origin[:3]
    return shape, LPS @ affine
