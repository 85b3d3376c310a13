"""NRRD (https://teem.sourceforge.net/nrrd/format.html): .nrrd, or .nhdr with the voxels beside it; raw or gzip."""

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

MAGIC = b"NRRD000"
TYPES = {
    name: code
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
SPACES = {
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS,
    "lps": LPS,
}
SAME = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
PACKED = {"raw": False, "gzip": True, "gz": True}


def open_nrrd(path: Path, bytes_on_disk: int, root: Path | None) -> Raster:
    """Read the header.

    Raises:
        NemesisError: see :func:`nemesis.data.formats.open_raster`.
    """
    header, names, end = _header(path)
    code = TYPES.get(header.text("type").lower())
    if code is None:
        raise refusal(path, f"holds '{header.text('type')[:40]}' values", "Give scalar voxels.")
    encoding = header.text("encoding").lower()
    if encoding not in PACKED:  # text has no byte order to look for
        raise refusal(path, f"its encoding is '{encoding[:40]}'", "Save it with encoding raw or gzip.")
    order = header.text("endian", "little" if code[1] == "1" else None)
    if order not in ("little", "big"):
        raise header.bad("endian")
    dtype = np.dtype(code).newbyteorder("<" if order == "little" else ">")
    shape, affine = _grid(header)
    claimed = math.prod(shape) * dtype.itemsize
    skip = header.whole("byte skip", "0")[0]
    if header.whole("line skip", "0") != (0,) or skip < (0 if PACKED[encoding] else -1) or skip > 1 << 24:
        raise refusal(path, "skips lines or bytes of its data in an unusual way", "Save it again as one .nrrd file.")
    paths, start = [path], end
    if names is not None:
        (paths, bytes_on_disk), start = header.files(names, root), 0
    if skip == -1:
        start, skip = max(start, bytes_on_disk - claimed), 0
        if len(paths) > 1:
            raise header.bad("byte skip")

    def slabs() -> Iterator[NDArray[Any]]:
        source = Bytes(paths, start, PACKED[encoding])
        source.skip(skip)
        yield from voxels(path, source, shape, dtype)

    return Raster(path, shape, affine, slabs, PACKED[encoding], claimed, bytes_on_disk)


def _header(path: Path) -> tuple[Header, list[str] | None, int]:
    """Fields, the data files' names if the voxels are not in the file itself, and the byte at which the header ends."""
    text = Bytes([path]).read(LONGEST)
    found = re.search(rb"\r?\n\r?\n", text)
    lines = header_lines(path, text[: found.start() if found else len(text)])
    values: dict[str, str] = {}
    listed: list[str] | None = None
    for number, line in enumerate(lines[1:], 2):
        if listed is not None:
            listed += [line] if line else []
            continue
        key, mark, value = line.partition(":")
        if not line or line.startswith("#") or value.startswith("="):  # ":=" sets a key of somebody's own
            continue
        if not mark:
            raise refusal(path, f"line {number} of its header is no field", AGAIN)
        key = SAME.get(key.lower(), key.lower())
        if key in values:
            raise refusal(path, f"its header says '{key[:40]}' twice", AGAIN)
        values[key] = value.strip()
        if key == "data file" and value.split()[:1] == ["LIST"]:
            listed = []
    named = values.get("data file")
    if named is None and not found:
        raise refusal(path, "its header does not end", AGAIN)
    if named is not None and listed is None:
        if "%" in named:
            raise refusal(path, "keeps its voxels in a numbered series of files", "Save it again as one .nrrd file.")
        listed = [named]
    return Header(path, values), listed, found.end() if found else 0


def _grid(header: Header) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape (i, j, k) and index → RAS mm, without axes of size 1 that have no direction."""
    path, sizes = header.path, header.whole("sizes")
    if header.whole("dimension") != (len(sizes),):
        raise header.bad("dimension")
    space = header.values.get("space", "")
    if space.lower() not in SPACES:
        what = f"does not say how the patient lies (its 'space' is '{space[:40]}'), so left and right are unknown"
        raise refusal(path, what, "Convert it from the source again, or set its space if you know it.")
    directions = re.findall(r"\(([^()]*)\)|(none)", header.text("space directions"))
    if len(directions) != len(sizes):
        raise header.bad("space directions")
    axes = [n for n, (_, none) in enumerate(directions) if not none]
    if any(sizes[n] != 1 for n in range(len(sizes)) if n not in axes):
        what = f"holds several values per voxel (colour, or frames): its sizes are {header.text('sizes')[:80]}"
        raise refusal(path, what, "Give one 3D scan of scalar voxels per file.")
    vectors = [header.real("space directions", directions[n][0].split(",")) for n in axes]
    origin = header.real("space origin", header.text("space origin").strip("() ").split(","))
    shape = one_volume(path, tuple(sizes[n] for n in axes))
    if len(axes) != 3 or any(len(vector) != 3 for vector in vectors):
        raise header.bad("space directions")
    if len(origin) != 3:
        raise header.bad("space origin")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(vectors).T, origin
    return shape, SPACES[space.lower()] @ affine
