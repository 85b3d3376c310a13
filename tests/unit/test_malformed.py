"""Files that are damaged, lie, or mean harm: each is one clear refusal, or a volume that equals what its header says."""

import bz2
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import SYNTAXES, save_dicom, save_metaimage, save_nrrd
from small_scans import RAS, body, save

from nemesis.data.readers import read_labels, read_volume
from nemesis.errors import NemesisError

SHAPE = (9, 10, 8)
FIXED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path, reader=read_volume, **arguments):
    """The one fault of a file: printable, with a remedy."""
    with pytest.raises(NemesisError) as caught:
        reader(path, **arguments)
    (fault,) = caught.value.faults
    assert fault.what and fault.remedy
    assert str(fault).encode().decode().replace(" ", "").isprintable()
    return fault


class Harm:
    """Would make a file if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def tar(name, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(name, data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def numpy_file(array, save=np.save):
    out = io.BytesIO()
    save(out, array)
    return out.getvalue()


OTHER_FILES = {
    "empty": lambda folder: b"",
    "one byte": lambda folder: b"x",
    "zeros": lambda folder: bytes(10_000),
    "noise": lambda folder: np.random.default_rng(0).bytes(10_000),
    "text": lambda folder: b"this is no scan\n" * 100,
    "magic of gzip only": lambda folder: b"\x1f\x8b",
    "gzip of nothing": lambda folder: gzip.compress(b""),
    "gzip of text": lambda folder: gzip.compress(b"no scan" * 1000),
    "gzip in gzip": lambda folder: gzip.compress(save(folder / "s.nii.gz", body(SHAPE)).read_bytes()),
    "gzip of nrrd": lambda folder: gzip.compress(save_nrrd(folder / "s.nrrd", body(SHAPE)).read_bytes()),
    "bzip2": lambda folder: bz2.compress(save(folder / "s.nii", body(SHAPE)).read_bytes()),
    "zlib": lambda folder: zlib.compress(save(folder / "s.nii", body(SHAPE)).read_bytes()),
    "zip": lambda folder: zipped("scan.nii", save(folder / "s.nii", body(SHAPE)).read_bytes()),
    "zip that leads out": lambda folder: zipped("../../harm", b"x"),
    "zip bomb": lambda folder: zipped("scan.nii", bytes(1 << 26)),
    "tar that leads out": lambda folder: tar("../../harm", b"x"),
    "pickle": lambda folder: pickle.dumps(Harm(folder / "harm")),
    "npy": lambda folder: numpy_file(body(SHAPE)),
    "npy of pickles": lambda folder: numpy_file(np.array([Harm(folder / "harm")], dtype=object)),
    "npz of pickles": lambda folder: numpy_file(np.array([Harm(folder / "harm")], dtype=object), np.savez),
    "png": lambda folder: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "jpeg": lambda folder: b"\xff\xd8\xff\xe0" + bytes(100),
    "html": lambda folder: b"<!DOCTYPE html><html>404</html>",
    "hdf5": lambda folder: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "git-lfs pointer": lambda folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "dicom magic only": lambda folder: bytes(128) + b"DICM",
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("reader", [read_volume, read_labels])
def test_other_files(tmp_path, name, reader):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(OTHER_FILES[name](tmp_path))
    refused(path, reader, **({} if reader is read_volume else {"like": None}))
    assert not (tmp_path / "harm").exists()


def patched(folder, *changes, gz=False):
    """A NIfTI-1 file of which bytes were overwritten: (offset, struct format, values...)."""
    data = bytearray(save(folder / "whole.nii", body(SHAPE)).read_bytes())
    for offset, form, *values in changes:
        struct.pack_into("<" + form, data, offset, *values)
    path = folder / "scan.nii"
    path.write_bytes(gzip.compress(data) if gz else data)
    return path


NIFTI = {
    "size of header": ((0, "i", 349),),
    "magic": ((344, "4s", b"n+3\0"),),
    "pair": ((344, "4s", b"ni1\0"),),
    "Analyze": ((344, "4s", bytes(4)),),
    "no axis": ((40, "h", 0),),
    "two axes": ((40, "h", 2),),
    "nine axes": ((40, "h", 9),),
    "negative axes": ((40, "h", -1),),
    "zero voxels": ((42, "h", 0),),
    "negative voxels": ((42, "h", -8),),
    "one plane more": ((46, "h", 10),),
    "one plane less": ((46, "h", 8),),
    "a plane more along i": ((42, "h", 11),),
    "most voxels": ((42, "3h", 32767, 32767, 32767),),
    "many voxels": ((42, "3h", 1024, 1024, 1024),),
    "long axis": ((42, "3h", 5000, 10, 8),),
    "several frames": ((40, "5h", 4, 5, 8, 9, 2),),
    "five axes": ((40, "6h", 5, 5, 8, 1, 9, 2),),
    "no type": ((70, "h", 0),),
    "unknown type": ((70, "h", 1234),),
    "bits": ((70, "h", 1),),
    "colour": ((70, "2h", 128, 24),),
    "colour and alpha": ((70, "2h", 2304, 32),),
    "complex": ((70, "2h", 32, 64),),
    "float128": ((70, "2h", 1536, 128),),
    "wider type": ((70, "2h", 64, 64),),
    "narrower type": ((70, "2h", 2, 8),),
    "offset in the header": ((108, "f", 100.0),),
    "offset zero": ((108, "f", 0.0),),
    "negative offset": ((108, "f", -352.0),),
    "offset NaN": ((108, "f", np.nan),),
    "offset infinite": ((108, "f", np.inf),),
    "offset far": ((108, "f", 1e30),),
    "offset behind the end": ((108, "f", 100_000.0),),
    "offset a little late": ((108, "f", 368.0),),
    "no codes": ((252, "2h", 0, 0),),
    "negative codes": ((252, "2h", -1, -1),),
    "rotation of NaN": ((252, "2h", 1, 0), (256, "f", np.nan)),
    "rotation too long": ((252, "2h", 1, 0), (256, "3f", 1.0, 1.0, 1.0)),
    "both codes, rotation of NaN": ((252, "2h", 1, 1), (256, "f", np.nan)),
    "both codes, rotation otherwise": ((252, "2h", 1, 1), (256, "3f", 1.0, 0.0, 0.0)),
    "voxels of no size": ((252, "2h", 1, 0), (80, "3f", 0.0, 0.0, 0.0)),
    "voxels of NaN": ((252, "2h", 1, 0), (80, "3f", np.nan, 1.0, 1.0)),
    "affine of NaN": ((280, "f", np.nan),),
    "affine infinite": ((280, "f", np.inf),),
    "affine of zeros": ((280, "12f", *[0.0] * 12),),
    "affine huge": ((280, "f", 1e38),),
    "affine far away": ((292, "f", 1e38),),
    "affine collapsed": ((280, "12f", 2, 0, 0, 0, 0, 2, 0, 0, 0, 2, 1e-4, 0),),
    "affine sheared": ((280, "12f", 2, 1, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0),),
    "affine leaning without end": ((280, "12f", 2, 0, 0, 0, 0, 2, 29, 0, 0, 0, 2, 0),),
    "metres": ((280, "12f", 0.002, 0, 0, 0, 0, 0.002, 0, 0, 0, 0, 0.002, 0),),
    "scaled out of HU": ((112, "2f", 1e6, 0.0),),
    "scaled to nothing": ((112, "2f", 1e-9, 0.0),),
    "scaled by NaN": ((112, "2f", 1.0, np.nan),),
    "scaled beyond floats": ((112, "2f", 3e38, 3e38),),
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", NIFTI)
def test_nifti_headers_that_lie(tmp_path, name, gz):
    refused(patched(tmp_path, *NIFTI[name], gz=gz))


@pytest.mark.parametrize(
    "field",
    [(16, "q", 2**62), (16, "q", 2**33), (24, "3q", 2**21, 2**21, 2**21), (24, "q", -1), (168, "q", -(2**62)), (168, "q", 2**62),
     (168, "q", 0)],
)  # fmt: skip
def test_nifti_2_headers_that_lie(tmp_path, field):
    image = nibabel.Nifti2Image(body(SHAPE).transpose(1, 2, 0), RAS)
    path = tmp_path / "scan.nii"
    nibabel.save(image, path)
    np.testing.assert_array_equal(read_volume(path).hu, body(SHAPE))
    data = bytearray(path.read_bytes())
    offset, form, *values = field
    struct.pack_into("<" + form, data, offset, *values)
    path.write_bytes(data)
    refused(path)


GZIP = {
    "checksum": lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
    "length": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "no checksum": lambda data: data[:-8],
    "half a checksum": lambda data: data[:-2],
    "half": lambda data: data[: len(data) // 2],
    "header only": lambda data: data[:10],
    "garbage behind": lambda data: data + b"garbage",
    "zeros without end behind": lambda data: data + bytes(1 << 20),
    "a member behind": lambda data: data + gzip.compress(b"garbage"),
    "half a member behind": lambda data: data + gzip.compress(b"")[:10],
    "itself behind": lambda data: data + data,
    "unknown method": lambda data: data[:2] + b"\x07" + data[3:],
    "crumbs": lambda data: data + gzip.compress(b"") * 5000,
    "crumbs before": lambda data: gzip.compress(b"") * 5000 + data,
}


@pytest.mark.parametrize("name", GZIP)
def test_gzip_streams_are_read_to_their_very_end(tmp_path, name):
    path = save(tmp_path / "scan.nii.gz", body(SHAPE))
    path.write_bytes(GZIP[name](path.read_bytes()))
    refused(path)


NRRD = {
    "no type": {"type": None},
    "unknown type": {"type": "quaternion"},
    "block": {"type": "block"},
    "no sizes": {"sizes": None},
    "sizes of words": {"sizes": "a b c"},
    "negative sizes": {"sizes": "-10 -8 9"},
    "zero sizes": {"sizes": "0 8 9"},
    "two sizes": {"sizes": "10 8"},
    "endless sizes": {"sizes": "1 " * 20_000},
    "endless digits": {"sizes": "9" * 20_000},
    "one plane more": {"sizes": "10 8 10"},
    "one plane less": {"sizes": "10 8 8"},
    "most voxels": {"sizes": "2097152 2097152 2097152"},
    "too many voxels": {"sizes": "2048 2048 2048"},
    "many voxels": {"sizes": "1024 1024 1024"},
    "dimension": {"dimension": "4"},
    "no dimension": {"dimension": None},
    "no encoding": {"encoding": None},
    "ascii": {"encoding": "ascii", "endian": None},
    "bzip2": {"encoding": "bzip2"},
    "raw though packed": {"content": "packed"},
    "no endian": {"endian": None},
    "unknown endian": {"endian": "middle"},
    "no space": {"space": None},
    "unknown space": {"space": "scanner-xyz"},
    "space of time": {"space": "left-posterior-superior-time"},
    "no directions": {"space_directions": None},
    "two directions": {"space_directions": "(1,0,0) (0,1,0)"},
    "flat directions": {"space_directions": "(1,0) (0,1) (0,0)"},
    "directions of words": {"space_directions": "(a,b,c) (d,e,f) (g,h,i)"},
    "directions of NaN": {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"},
    "directions without end": {"space_directions": "(inf,0,0) (0,1,0) (0,0,1)"},
    "directions of zero": {"space_directions": "(0,0,0) (0,0,0) (0,0,0)"},
    "collapsed directions": {"space_directions": "(2,0,0) (2,0,0) (0,0,2)"},
    "none for a real axis": {"space_directions": "none (0,1,0) (0,0,1)"},
    "no origin": {"space_origin": None},
    "flat origin": {"space_origin": "(0,0)"},
    "origin of words": {"space_origin": "(a,b,c)"},
    "origin far away": {"space_origin": "(1e300,0,0)"},
    "line skip": {"line_skip": "2"},
    "negative skip": {"byte_skip": "-5"},
    "skip from the end though packed": {"byte_skip": "-1"},
    "long skip": {"byte_skip": "99999999999"},
    "skip of words": {"byte_skip": "many"},
    "no field": {"content": "a\nthis is no field"},
    "twice": {"content": "a\ncontent: b"},
    "not text": {"content": "?"},
    "absolute data file": {"data_file": "/etc/passwd"},
    "data file above": {"data_file": "../outside.raw"},
    "data file far above": {"data_file": "a/../../outside.raw"},
    "data file missing": {"data_file": "nothing.raw"},
    "data file that is itself": {"data_file": "scan.nrrd"},
    "data file that is the folder": {"data_file": "."},
    "data file by a link": {"data_file": "link.raw"},
    "data file by a linked folder": {"data_file": "up/outside.raw"},
    "data file in a pipe": {"data_file": "pipe"},
    "data file from a device": {"data_file": "zero"},
    "data file with a zero byte": {"data_file": "a\0b"},
    "data file with a long name": {"data_file": "a" * 5000},
    "data files by number": {"data_file": "%99999999d.raw 1 2 1"},
    "list that leads out": {"data_file": "LIST\n../outside.raw"},
    "list of nothing": {"data_file": "LIST"},
    "list of the same": {"data_file": "LIST\n" + "beside.raw\n" * 1000},
}


def trap(folder):
    """A folder with links and pipes that lead out of it or never end, beside a file that must not be read."""
    folder.mkdir()
    (folder.parent / "outside.raw").write_bytes(body(SHAPE).tobytes())
    (folder / "beside.raw").write_bytes(body(SHAPE).tobytes())
    (folder / "link.raw").symlink_to(folder.parent / "outside.raw")
    (folder / "up").symlink_to(folder.parent)
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize("name", NRRD)
def test_nrrd_headers_that_lie(tmp_path, name):
    path = trap(tmp_path / "root") / "scan.nrrd"
    fields = {key: _safe(value) for key, value in NRRD[name].items()}
    save_nrrd(path, body(SHAPE), **{"encoding": "raw" if "data_file" in fields else "gzip"} | fields)
    exchanged = {"not text": (b"content: ?", b"content: \xff"), "raw though packed": (b"encoding: gzip", b"encoding: raw")}
    path.write_bytes(path.read_bytes().replace(*exchanged.get(name, (b"", b""))))
    what = refused(path).what
    if "outside" in str(fields) or "link" in str(fields):
        assert "outside of its folder" in what or "out of its folder" in what
    if name == "ascii":
        assert "its encoding is 'ascii'" in what


def _safe(value):
    return None if value is None else value.encode("utf-8", "replace").decode()


def test_nrrd_headers_without_an_end(tmp_path):
    path = save_nrrd(tmp_path / "scan.nrrd", body(SHAPE))
    for data in (b"NRRD0004\n", b"NRRD0004\n" + b"a" * 200_000, b"NRRD0004\n" + b"# long\n" * 50_000, path.read_bytes()[:100]):
        path.write_bytes(data)
        refused(path)


META = {
    "no sizes": {"DimSize": None},
    "sizes of words": {"DimSize": "a b c"},
    "negative sizes": {"DimSize": "-10 8 9"},
    "zero sizes": {"DimSize": "10 0 9"},
    "two sizes": {"DimSize": "10 8", "NDims": "2"},
    "frames": {"DimSize": "10 8 3 3", "NDims": "4"},
    "one plane more": {"DimSize": "10 8 10"},
    "one plane less": {"DimSize": "10 8 8"},
    "most voxels": {"DimSize": "4294967296 4294967296 4294967296"},
    "many voxels": {"DimSize": "1024 1024 1024"},
    "endless sizes": {"DimSize": "10 " * 15_000},
    "dimensions": {"NDims": "4"},
    "dimensions of words": {"NDims": "three"},
    "no type": {"ElementType": None},
    "unknown type": {"ElementType": "MET_STRING"},
    "array": {"ElementType": "MET_SHORT_ARRAY"},
    "wider type": {"ElementType": "MET_DOUBLE"},
    "narrower type": {"ElementType": "MET_UCHAR"},
    "colour": {"ElementNumberOfChannels": "3"},
    "channels of words": {"ElementNumberOfChannels": "many"},
    "as text": {"BinaryData": "False"},
    "a third truth": {"BinaryData": "perhaps"},
    "packed though raw": {"CompressedData": "True"},
    "no matrix": {"TransformMatrix": None},
    "short matrix": {"TransformMatrix": "1 0 0 0"},
    "matrix of words": {"TransformMatrix": "a b c d e f g h i"},
    "matrix of NaN": {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"},
    "matrix of zeros": {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
    "collapsed matrix": {"TransformMatrix": "1 0 0 1 0 0 0 0 1"},
    "no place": {"Offset": None},
    "place far away": {"Offset": "1e300 0 0"},
    "place without end": {"Offset": "inf 0 0"},
    "flat place": {"Offset": "0 0"},
    "no spacing": {"ElementSpacing": None},
    "spacing of zero": {"ElementSpacing": "0 0 0"},
    "negative spacing beyond sense": {"ElementSpacing": "-1000 1 1"},
    "scaled": {"ElementToIntensityFunctionSlope": "2"},
    "shifted": {"ElementToIntensityFunctionOffset": "-1024"},
    "header of words": {"HeaderSize": "long"},
    "header too short": {"HeaderSize": "-2"},
    "header too long": {"HeaderSize": "99999999999"},
    "header a little long": {"HeaderSize": "8"},
    "no key": {"Comment": "a\nthis is no key"},
    "twice": {"Comment": "a\nComment = b"},
    "absolute data file": {"ElementDataFile": "/etc/passwd"},
    "data file above": {"ElementDataFile": "../outside.raw"},
    "data file far above": {"ElementDataFile": "a/b/../../../outside.raw"},
    "data file missing": {"ElementDataFile": "nothing.raw"},
    "data file that is itself": {"ElementDataFile": "scan.mhd"},
    "data file that is the folder": {"ElementDataFile": "."},
    "no data file": {"ElementDataFile": ""},
    "data file by a link": {"ElementDataFile": "link.raw"},
    "data file by a linked folder": {"ElementDataFile": "up/outside.raw"},
    "data file in a pipe": {"ElementDataFile": "pipe"},
    "data file from a device": {"ElementDataFile": "zero"},
    "data file with a zero byte": {"ElementDataFile": "a\0b"},
    "data files by number": {"ElementDataFile": "%099999999d.raw 1 9 1"},
    "list that leads out": {"ElementDataFile": "LIST\n../outside.raw"},
    "list of nothing": {"ElementDataFile": "LIST"},
    "list of the same": {"ElementDataFile": "LIST\n" + "beside.raw\n" * 1000},
    "local though beside": {"ElementDataFile": "LOCAL"},
}


@pytest.mark.parametrize("name", META)
def test_metaimage_headers_that_lie(tmp_path, name):
    path = save_metaimage(trap(tmp_path / "root") / "scan.mhd", body(SHAPE), **META[name])
    what = refused(path).what
    if "outside" in str(META[name]) or "link" in str(META[name]):
        assert "outside of its folder" in what or "out of its folder" in what


@pytest.mark.parametrize(
    "change",
    [{"CompressedDataSize": "17"}, {"CompressedDataSize": "many"}, {"DimSize": "10 8 10"}, {"DimSize": "10 8 8"},
     {"ElementType": "MET_CHAR"}, {"HeaderSize": "-1"}, {"CompressedData": "False"}],
)  # fmt: skip
def test_packed_metaimage_headers_that_lie(tmp_path, change):
    refused(save_metaimage(tmp_path / "scan.mha", body(SHAPE), compressed=True, **change))
    refused(save_metaimage(tmp_path / "scan.mhd", body(SHAPE), compressed=True, **change))


def test_metaimage_headers_without_an_end(tmp_path):
    path = tmp_path / "scan.mhd"
    for data in (
        b"NDims = 3\n",
        b"ObjectType = Image\n" + b"a = b\n" * 50_000,
        b"NDims = 3\n" + b"\xff" * 1000 + b"\nElementDataFile = LOCAL\n",
    ):
        path.write_bytes(data)
        refused(path)


def small_series(folder, **change):
    def changed(k, dataset):
        if k == change.get("only", k):
            for name, value in change.items():
                if name == "raw":
                    dataset.add_new(*value)
                elif name != "only":
                    setattr(dataset, name, value)
        return dataset

    return save_dicom(folder, body(SHAPE), change=changed)


DICOM = {
    "rows": {"Rows": 60_000},
    "columns": {"Columns": 0},
    "rows and columns": {"Rows": 65_535, "Columns": 65_535},
    "large planes": {"Rows": 4096, "Columns": 4096},
    "8 bits": {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    "32 bits": {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
    "12 bits packed": {"BitsAllocated": 12},
    "no bits": {"BitsStored": 0},
    "sign": {"PixelRepresentation": 7},
    "frames": {"NumberOfFrames": 1000},
    "position of NaN": {"raw": (0x00200032, "DS", "nan\\nan\\nan")},
    "position of words": {"raw": (0x00200032, "LO", "a\\b\\c")},
    "position without end": {"raw": (0x00200032, "DS", "1e308\\1e308\\1e308"), "only": 4},
    "position of two": {"ImagePositionPatient": [0, 0]},
    "one position for all": {"ImagePositionPatient": [0, 0, 0]},
    "orientation of zeros": {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
    "spacing of words": {"raw": (0x00280030, "LO", "wide\\high")},
    "spacing of NaN": {"raw": (0x00280030, "DS", "nan\\nan")},
    "negative spacing": {"PixelSpacing": [-1, 1]},
    "slope of words": {"raw": (0x00281053, "LO", "steep")},
    "slope without end": {"raw": (0x00281053, "DS", "1e400")},
    "slope out of HU": {"RescaleSlope": "1e6"},
    "intercept out of HU": {"RescaleIntercept": "1e6"},
    "too many pixels": {"PixelData": bytes(1000)},
    "no pixel": {"PixelData": b""},
    "padding of words": {"raw": (0x00280120, "LO", "none")},
}


@pytest.mark.parametrize("name", DICOM)
def test_dicom_headers_that_lie(tmp_path, name):
    refused(small_series(tmp_path / "series", **DICOM[name]))


def test_dicom_folders_that_mean_harm(tmp_path):
    folder = small_series(tmp_path / "root/series")
    elsewhere = small_series(tmp_path / "elsewhere")
    one = folder / "1-004.dcm"
    kept = one.read_bytes()

    def each(make):
        one.unlink()
        make()
        fault = refused(folder, root=tmp_path / "root")
        assert fault.where.startswith(str(one))
        one.unlink()
        one.write_bytes(kept)

    each(lambda: one.symlink_to(elsewhere / "1-004.dcm"))
    each(lambda: one.symlink_to(tmp_path / "nowhere"))
    each(lambda: one.symlink_to(one))
    each(lambda: one.symlink_to("/dev/zero"))
    each(lambda: os.mkfifo(one))
    each(lambda: one.write_bytes(kept[:132]))
    each(lambda: one.write_bytes(kept[:-1]))
    np.testing.assert_array_equal(read_volume(folder, root=tmp_path / "root").hu, body(SHAPE))
    (tmp_path / "root/link").symlink_to(elsewhere)
    refused(tmp_path / "root/link", root=tmp_path / "root")


def test_deflated_and_endlessly_nested_dicom_is_refused(tmp_path):
    folder = small_series(tmp_path / "series")
    path = folder / "1-001.dcm"
    data = path.read_bytes()
    head, meta = data[:132], data[132:]
    length = 12 + struct.unpack("<I", meta[8:12])[0]
    deflated = meta[:length].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20])
    assert b"1.2.840.10008.1.2.1" in deflated
    uid = struct.pack("<HH2sH", 2, 16, b"UI", 22) + b"1.2.840.10008.1.2.1.99"
    at = meta.index(struct.pack("<HH2sH", 2, 16, b"UI", 20))
    deflater = zlib.compressobj(wbits=-15)
    bomb = deflater.compress(bytes(1 << 26)) + deflater.flush()
    changed = meta[:at] + uid + meta[at + 28 : length]
    changed = changed[:8] + struct.pack("<I", len(changed) - 12) + changed[12:]
    path.write_bytes(head + changed + bomb)
    assert "deflated" in refused(folder).what
    nested = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(head + meta[:length] + nested * 20_000)
    refused(folder)


def test_run_lengths_that_never_end_are_refused(tmp_path):
    folder = save_dicom(tmp_path / "series", body(SHAPE), syntax="rle")
    path = folder / "1-001.dcm"
    data = path.read_bytes()
    pixels = data.rindex(b"\xe0\x7f\x10\x00") + 12
    frame = struct.pack("<16I", 2, 64, 70, *[0] * 13) + b"\x81\x00" * 500_000
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    path.write_bytes(data[:pixels] + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    assert "does not end within twice the bytes" in refused(folder).what


@pytest.mark.parametrize(
    "name",
    ["new\nline", "\x1b[2Jescape", "back\\slash", "spa ce", "-rf", "$(reboot)", "ünïcödé", "\u202emirrored",
     b"bytes\xff".decode("utf-8", "surrogateescape"), "a" * 240],
)  # fmt: skip
def test_hostile_names(tmp_path, name):
    path = save(tmp_path / "scan.nii.gz", body(SHAPE)).rename(tmp_path / name)
    np.testing.assert_array_equal(read_volume(path).hu, body(SHAPE))
    path.write_bytes(path.read_bytes()[:-3])
    fault = refused(path)
    json.dumps(fault.__dict__, ensure_ascii=False).encode()
    header = save_metaimage(tmp_path / "s.mhd", body(SHAPE), ElementDataFile=_safe(name))
    refused(header)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "device").symlink_to("/dev/zero")
    save(tmp_path / "outside.nii.gz", body(SHAPE))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    for name in ("pipe", "circle", "broken", "device", "nothing", "a\0b", "a" * 5000):
        refused(tmp_path / name)
        refused(tmp_path / name, read_labels, like=None)
    assert "out of its folder" in refused(tmp_path / "root/link.nii.gz", root=tmp_path / "root").what
    assert "out of its folder" in refused(tmp_path / "root/link.nii.gz", read_labels, like=None, root=tmp_path / "root").what


# Bombs: read in a process whose memory is limited, so that room which is made for a lie shows.

BOMBS = {
    "more than the header says": lambda folder: gzip.compress(
        save(folder / "s.nii", body(SHAPE)).read_bytes() + bytes(1 << 28), 1
    ),
    "as much as the header says": lambda folder: bomb(folder, (1024, 1024, 1024), 1 << 28),
    "too many for anybody": lambda folder: bomb(folder, (4096, 4096, 4096), 1 << 20),
    "under the limit of the ratio": lambda folder: bomb(folder, (512, 512, 200), 100 << 20),
    "members without end": lambda folder: gzip.compress(b"") * 200_000,
    "nrrd": lambda folder: save_nrrd(folder / "s.nrrd", body(SHAPE), sizes="1024 1024 1000").read_bytes(),
    "metaimage": lambda folder: save_metaimage(
        folder / "s.mha", body(SHAPE), compressed=True, DimSize="1024 1024 1000"
    ).read_bytes(),
}
LIMITED = """
    import resource, sys
    from pathlib import Path
    import numpy, nibabel, nemesis.data.readers as readers
    from nemesis.errors import NemesisError

    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),) * 2)
    for reader in (lambda path: readers.read_labels(path, None), readers.read_volume):
        try:
            reader(Path(sys.argv[1]))
        except NemesisError as error:
            print(len(error.faults))
"""


def bomb(folder, shape, length):
    """A gzip file of a header that says ``shape`` (i, j, k), int16, and ``length`` zeros."""
    header = bytearray(save(folder / "s.nii", body(SHAPE)).read_bytes()[:352])
    struct.pack_into("<3h", header, 42, *shape)
    return gzip.compress(bytes(header)) + gzip.compress(bytes(1 << 20)) * (length >> 20)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(tmp_path, name):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(BOMBS[name](tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    expected = "1\n" if name == "under the limit of the ratio" else "1\n1\n"  # as a label map that is an empty one
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


# Damage: one to four bytes changed, or the end cut off, anywhere in a file of every format.

WRITERS = {
    "nii": lambda folder: save(folder / "scan.nii", body(SHAPE), "LPS"),
    "nii.gz": lambda folder: save(folder / "scan.nii.gz", body(SHAPE), "LPS"),
    "nrrd": lambda folder: save_nrrd(folder / "scan.nrrd", body(SHAPE), encoding="raw"),
    "nrrd gzip": lambda folder: save_nrrd(folder / "scan.nrrd", body(SHAPE)),
    "mha": lambda folder: save_metaimage(folder / "scan.mha", body(SHAPE)),
    "mha packed": lambda folder: save_metaimage(folder / "scan.mha", body(SHAPE), compressed=True),
}
VOXELS = {"nii": 352, "nrrd": -(2 * 9 * 10 * 8), "mha": -(2 * 9 * 10 * 8)}  # where the voxels begin in those that are not packed
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)  # place, mask


def outcome(path):
    """The volume, or None where it was refused with one fault."""
    try:
        volume = read_volume(path)
    except NemesisError as error:
        (fault,) = error.faults
        assert fault.remedy and str(fault).encode()
        return None
    assert volume.hu.dtype == np.int16 and min(volume.hu.shape) >= 8
    assert np.isfinite(volume.affine).all() and all(0.1 <= s <= 30 for s in volume.spacing)
    return volume


@pytest.mark.parametrize("name", WRITERS)
@settings(FIXED, max_examples=60)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    head=st.booleans(),
)
def test_changed_bytes(tmp_path, name, changes, head):
    path = WRITERS[name](tmp_path)
    data = bytearray(path.read_bytes())
    size = len(data)
    start = VOXELS.get(name, size) % size if name in VOXELS else size
    places = [int(where * (min(start, 600) if head else size)) for where, _ in changes]
    for place, (_, mask) in zip(places, changes, strict=True):
        data[place] ^= mask
    path.write_bytes(data)
    volume = outcome(path)
    if volume is None:
        return
    if name not in VOXELS:  # the checksum leaves only bytes that say nothing of the voxels, or the text of the header
        assert np.array_equal(np.sort(volume.hu, None), np.sort(body(SHAPE), None))
    elif min(places) >= start:
        stored = np.frombuffer(bytes(data[start:]), "<i2").reshape(9, 8, 10)  # (k, j, i) of LPS
        np.testing.assert_array_equal(volume.hu, stored.transpose(0, 2, 1)[:, ::-1, ::-1])
    elif name == "nii":
        there = nibabel.as_closest_canonical(nibabel.load(path))
        expected = np.asarray(there.dataobj).reshape(there.shape[:3]).transpose(2, 0, 1)
        assert volume.notes or np.abs(volume.hu - expected).max() <= 0.5


@pytest.mark.parametrize("name", WRITERS)
@settings(FIXED, max_examples=40)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_truncated_files(tmp_path, name, kept):
    path = WRITERS[name](tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    refused(path)


@pytest.mark.parametrize("name", SYNTAXES)
@settings(FIXED, max_examples=12)
@given(changes=CHANGES, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_damaged_slices(tmp_path, name, changes, kept):
    folder = save_dicom(tmp_path / "series", body(SHAPE), syntax=name)
    path = folder / "1-005.dcm"
    data = bytearray(path.read_bytes())
    for where, mask in changes:
        data[int(where * len(data))] ^= mask
    path.write_bytes(data[: max(1, int(kept * len(data)))])
    volume = outcome(folder)
    if volume is not None and len(volume.hu) == 9:
        np.testing.assert_array_equal(volume.hu[:4], body(SHAPE)[:4])
        np.testing.assert_array_equal(volume.hu[5:], body(SHAPE)[5:])
