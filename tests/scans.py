"""Makers of scan files in every format, for tests: a house array (D, H, W) goes in, in any orientation of storage.

``stored(house, axes, affine)`` → array on the file's own axes (i, j, k) and its RAS affine; ``axes`` as nibabel writes
them ("LPS": i runs to the left, j to posterior, k to superior); ``affine`` is always that of the RAS array
(``RAS``: 2 × 1.5 × 3 mm). NIfTI: ``save`` of tests/unit/small_scans.py.

- ``save_nrrd(path, house, ...)``: .nrrd, or .nhdr with the voxels in a file beside it (``detached="name.raw"``).
- ``save_metaimage(path, house, ...)``: .mha, or .mhd with .raw or (``compressed=True``) .zraw beside it.
- ``save_dicom(folder, house, ...)``: one series, a file per slice: uncompressed, RLE, JPEG, tilted...; ``change`` alters or
  drops single slices.
- ``SYNTAXES``: the names of DICOM encodings for ``save_dicom(syntax=...)``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from gzip import compress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

RAS = np.diag([2.0, 1.5, 3.0, 1.0])  # of the RAS array: x, y, z, that is H, W, D
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS mm ↔ LPS mm
NRRD_TYPES = {"i1": "int8", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "i8": "int64",
              "u8": "uint64", "f4": "float", "f8": "double"}  # fmt: skip
MET_TYPES = {"i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
             "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}  # fmt: skip
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def stored(house: NDArray[Any], axes: str = "LPS", affine: NDArray[Any] = RAS) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The array on axes (i, j, k) as a file stores it, and its index → RAS mm; ``affine`` is that of the RAS array."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(house.transpose(1, 2, 0)), affine, dtype=house.dtype)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(axes)))
    image = image.as_reoriented(turn)
    return np.asarray(image.dataobj), image.affine


def save_nrrd(
    path: Path,
    house: NDArray[Any],
    axes: str = "LPS",
    affine: NDArray[Any] = RAS,
    encoding: str = "gzip",
    detached: str | None = None,
    order: str = "<",
    **fields: str | None,
) -> Path:
    """Write NRRD; ``fields`` replace header fields ("_" for a blank) or, with None, leave them out."""
    array, place = stored(house, axes, affine)
    place = LPS @ place
    kind = array.dtype.str[1:]
    header = {
        "type": NRRD_TYPES[kind],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": " ".join(_vector(column) for column in place[:3, :3].T),
        "kinds": "domain domain domain",
        "endian": "little" if order == "<" else "big",
        "encoding": encoding,
        "space origin": _vector(place[:3, 3]),
    }
    if detached:
        header["data file"] = detached
    for name, value in fields.items():
        header.pop(name.replace("_", " "), None)
        if value is not None:
            header[name.replace("_", " ")] = value
    data = array.astype(order + kind).tobytes(order="F")
    data = compress(data, mtime=0) if encoding in ("gzip", "gz") else data
    text = "NRRD0004\n# a comment\n" + "".join(f"{name}: {value}\n" for name, value in header.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    if detached:
        (path.parent / detached).write_bytes(data)
        path.write_bytes(text.encode())
    else:
        path.write_bytes(text.encode() + b"\n" + data)
    return path


def _vector(values: Any) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"


def save_metaimage(
    path: Path,
    house: NDArray[Any],
    axes: str = "LPS",
    affine: NDArray[Any] = RAS,
    compressed: bool = False,
    order: str = "<",
    **keys: str | None,
) -> Path:
    """Write MetaImage (.mha: one file; .mhd: data beside it); ``keys`` replace header keys or, with None, leave them out."""
    array, place = stored(house, axes, affine)
    place = LPS @ place
    kind = array.dtype.str[1:]
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    data = array.astype(order + kind).tobytes(order="F")
    data = zlib.compress(data) if compressed else data
    beside = path.with_suffix(".zraw" if compressed else ".raw")
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(order == ">"),
        "CompressedData": str(compressed),
        "CompressedDataSize": str(len(data)) if compressed else None,
        "TransformMatrix": _numbers((place[:3, :3] / spacing).T.ravel()),
        "Offset": _numbers(place[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": MET_TYPES[kind],
        "ElementDataFile": "LOCAL" if path.suffix == ".mha" else beside.name,
    } | keys
    last = {"ElementDataFile": header.pop("ElementDataFile")}  # nothing may follow it
    text = "".join(f"{name} = {value}\n" for name, value in (header | last).items() if value is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        path.write_bytes(text.encode() + data)
    else:
        beside.write_bytes(data)
        path.write_bytes(text.encode())
    return path


def _numbers(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)


def save_dicom(
    folder: Path,
    house: NDArray[Any],
    axes: str = "LPS",
    affine: NDArray[Any] = RAS,
    syntax: str = "explicit",
    slope: float = 1,
    intercept: float | None = -1024,
    signed: bool = False,
    bits: int = 16,
    tilt: float = 0.0,
    series: str = "1.2.826.0.1.3680043.8.498.1",
    patient: str = "DOE^JANE",
    names: Callable[[int], str] = "1-{:03d}.dcm".format,
    change: Callable[[int, Any], Any] | None = None,
) -> Path:
    """Write a CT series of one file per slice (k), numbered from 1; stored = (HU − intercept) / slope.

    Args:
        bits: BitsStored, of 16 allocated.
        tilt: degrees by which the gantry leans: slice k is moved along the rows' normal by k × thickness × tan(tilt).
            The pixels stay: the house array is then what a reader must *not* return.
        change: called with every slice's number and its dataset (uncompressed), returns it or None to leave it out; a
            list of datasets is written as so many files.
    """
    array, place = stored(house, axes, affine)
    place = LPS @ place
    rows, columns, step = place[:3, 1], place[:3, 0], place[:3, 2]
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    lean = rows / spacing[1] * spacing[2] * np.tan(np.deg2rad(tilt))
    values = np.rint((array.astype(float) - (intercept or 0)) / slope).astype(np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(array.shape[2]):
        dataset = ct_slice(values[:, :, k].T, signed, bits)
        dataset.PatientName, dataset.PatientID = patient, f"{patient}-ID"
        dataset.SeriesInstanceUID = series
        dataset.SOPInstanceUID = f"{series}.{k + 1}"
        dataset.InstanceNumber = k + 1
        dataset.ImageOrientationPatient = [*_decimal(columns / spacing[0]), *_decimal(rows / spacing[1])]
        dataset.ImagePositionPatient = _decimal(place[:3, 3] + k * (step + lean))
        dataset.PixelSpacing = _decimal([spacing[1], spacing[0]])
        dataset.SliceThickness = _decimal([spacing[2]])[0]
        dataset.RescaleSlope = _decimal([slope])[0]
        if intercept is not None:
            dataset.RescaleIntercept = _decimal([intercept])[0]
        changed = change(k + 1, dataset) if change else dataset
        several = changed if isinstance(changed, list) else [changed]
        for n, one in enumerate(several):
            if one is not None:
                name = names(k + 1) if n == 0 else f"{n}-again-{names(k + 1)}"
                write_slice(folder / name, one, syntax)
    return folder


def ct_slice(pixels: NDArray[Any], signed: bool = False, bits: int = 16) -> Any:
    """A pydicom dataset of one CT slice (rows, columns) of stored values, without its place and its rescale."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.SOPClassUID = CT_STORAGE
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.9"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    assert low <= pixels.min() and pixels.max() < high, "the values do not fit the pixels"
    dataset.PixelData = (pixels & ((1 << bits) - 1)).astype("<u2").tobytes()
    return dataset


def write_slice(path: Path, dataset: Any, syntax: str = "explicit") -> Path:
    """Write a dataset (little endian, uncompressed in memory) as a DICOM file with that encoding."""
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    if syntax not in ("implicit", "explicit", "big"):
        from pydicom.encaps import encapsulate

        dataset.PixelData = encapsulate([_compressed(dataset, syntax)])
        dataset["PixelData"].is_undefined_length = True
    elif syntax == "big":
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _compressed(dataset: Any, syntax: str) -> bytes:
    """The pixels of a slice as one fragment, by GDCM."""
    import gdcm

    codes = {"rle": gdcm.TransferSyntax.RLELossless, "jpeg-lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
             "jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless, "jpeg2000": gdcm.TransferSyntax.JPEG2000Lossless}  # fmt: skip
    writer = gdcm.ImageWriter()  # owns the image: one of its own would be freed twice
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    sample = (1, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(*sample))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(dataset.PixelData)
    image.SetDataElement(element)
    changer = gdcm.ImageChangeTransferSyntax()
    changer.SetTransferSyntax(gdcm.TransferSyntax(codes[syntax]))
    changer.SetInput(image)
    assert changer.Change(), f"GDCM cannot write {syntax}"
    fragments = changer.GetOutput().GetDataElement().GetSequenceOfFragments()
    buffer: str = fragments.GetFragment(0).GetByteValue().GetBuffer()
    return buffer.encode("utf-8", "surrogateescape")


def _decimal(values: Sequence[float] | NDArray[Any]) -> list[str]:
    """DICOM's decimal strings hold 16 characters."""
    return [f"{float(value):.12g}"[:16] for value in values]
