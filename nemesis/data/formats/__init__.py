"""File formats of scans and label maps: one :class:`Raster` from each, told by what a file holds, never by its name."""

from __future__ import annotations

import os
from pathlib import Path

from nemesis.data.formats import dicom, metaimage, nifti, nrrd
from nemesis.data.formats.raster import Raster, check_regular, refusal
from nemesis.data.formats.streams import GZIP, Bytes

HEAD = 1024  # bytes that tell the format
OTHERS = {b"PK\x03\x04": "a zip archive (or .npz)", b"\x93NUMPY": "a NumPy array", b"\x80": "a Python pickle", b"\x89HDF": "HDF5",
          b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"%PDF": "a PDF", b"<": "XML or HTML"}  # fmt: skip


def open_raster(path: Path, series: str | None = None, root: Path | None = None) -> Raster:
    """Read the header of a file, or of the DICOM series ``series`` (None: the only one) of a folder.

    Args:
        root: nothing outside of this folder is read, wherever links lead; None: ``path`` is trusted, and what its header names
            must lie in its folder.

    Raises:
        NemesisError: none of the formats, several volumes, colour, an orientation that is not told or told twice, missing or
            uneven slices, another modality; a truncated, corrupt or lying header.
    """
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        return dicom.open_series(path, series, root)
    size = check_regular(path, root)
    head = Bytes([path]).read(HEAD)
    if head.startswith(nrrd.MAGIC):
        return nrrd.open_nrrd(path, size, root)
    if metaimage.is_metaimage(head):
        return metaimage.open_metaimage(path, size, root)
    packed = head.startswith(GZIP)
    if nifti.is_nifti(Bytes([path], packed=True).read(4) if packed else head):
        return nifti.open_nifti(path, packed, size)
    if head[128:132] == b"DICM":
        raise refusal(path, "is a single DICOM file", "Give the folder that holds the slices of its series.")
    kinds = [name for magic, name in OTHERS.items() if head.startswith(magic)] or ["empty"] * (not head)
    what = f"is not NIfTI, NRRD or MetaImage{' but ' + kinds[0] if kinds else ''}{' (inside its gzip)' if packed else ''}"
    raise refusal(path, what, "Give a scan in one of these formats, or the folder of a DICOM series.")
