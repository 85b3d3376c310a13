import gzip
import subprocess
import sys
import textwrap

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import LPS, RAS, save_dicom, save_metaimage, save_nrrd
from small_scans import body, organs, save

from nemesis.data.formats import open_raster
from nemesis.data.formats.streams import rescaled
from nemesis.data.readers import read_labels, read_volume, resample
from nemesis.errors import Fault, NemesisError

MAKERS = {
    "nifti": lambda folder, *scan: save(folder / "scan.nii.gz", *scan),
    "nrrd gzip": lambda folder, *scan: save_nrrd(folder / "scan.nrrd", *scan),
    "nrrd raw": lambda folder, *scan: save_nrrd(folder / "scan.nrrd", *scan, encoding="raw"),
    "nhdr": lambda folder, *scan: save_nrrd(folder / "scan.nhdr", *scan, detached="scan.raw.gz"),
    "mha": lambda folder, *scan: save_metaimage(folder / "scan.mha", *scan),
    "mha packed": lambda folder, *scan: save_metaimage(folder / "scan.mha", *scan, compressed=True),
    "mhd raw": lambda folder, *scan: save_metaimage(folder / "scan.mhd", *scan),
    "mhd zraw": lambda folder, *scan: save_metaimage(folder / "scan.mhd", *scan, compressed=True),
    "dicom": lambda folder, *scan: save_dicom(folder / "series", *scan),
}
FILES = {name: maker for name, maker in MAKERS.items() if name != "dicom"}


def turned(degrees):
    """The affine of the RAS array, turned about its own axis through the patient."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = -40, 12.5, 300
    return turn @ RAS


def refused(path, **arguments):
    with pytest.raises(NemesisError) as caught:
        read_volume(path, **arguments)
    (fault,) = caught.value.faults
    assert fault.remedy
    return fault.what


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SLA", "ASL", "IPL"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_format_in_any_orientation_gives_the_same_house_array(tmp_path, name, axes):
    path = MAKERS[name](tmp_path, body(), axes, turned(20))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.hu, body())
    assert volume.hu.dtype == np.int16 and volume.hu.flags.c_contiguous
    np.testing.assert_allclose(volume.affine, turned(20), atol=1e-4)
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.5), abs=1e-5)
    assert volume.notes == ()
    raster = open_raster(path)
    np.testing.assert_array_equal(volume.stored, raster.affine)
    assert nibabel.aff2axcodes(raster.affine) == tuple(axes) or name == "dicom"  # whose slices are sorted along their normal
    planes = np.concatenate(list(raster.slabs()))
    assert planes.shape == raster.shape[::-1]
    first = np.linalg.inv(volume.affine) @ raster.affine @ [1, 2, 3, 1]  # a voxel of the file, in the RAS array
    x, y, z = (int(n) for n in np.rint(first[:3]))
    assert planes[3, 2, 1] == body()[z, x, y]


@pytest.mark.parametrize("name", FILES)
def test_every_file_format_gives_label_maps(tmp_path, name):
    scan = read_volume(save_dicom(tmp_path / "series", body()))
    labels = read_labels(FILES[name](tmp_path, organs(), "PIR"), scan)
    np.testing.assert_array_equal(labels, organs())
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i2", "i4", "i8", "f4", "f8", "u2"])
@pytest.mark.parametrize("maker", [save_nrrd, save_metaimage])
def test_number_types_and_byte_orders(tmp_path, maker, kind, order):
    suffix = ".nrrd" if maker is save_nrrd else ".mha"
    if kind == "u2":
        assert "no value is negative" in refused(maker(tmp_path / f"scan{suffix}", (body() + 1024).astype(kind), order=order))
    else:
        hu = body().astype(kind) + (0.25 if kind[0] == "f" else 0)
        np.testing.assert_array_equal(read_volume(maker(tmp_path / f"scan{suffix}", hu, order=order)).hu, body())


def test_content_tells_the_format_not_the_name(tmp_path):
    for n, path in enumerate([save_nrrd(tmp_path / "a.nrrd", body()), save_metaimage(tmp_path / "a.mha", body())]):
        np.testing.assert_array_equal(read_volume(path.rename(tmp_path / f"{n}.nii.gz")).hu, body())
    single = save_dicom(tmp_path / "series", body()) / "1-003.dcm"
    assert "a single DICOM file" in refused(single)


def test_nrrd_says_its_space_in_several_ways(tmp_path):
    place = np.diag([2.0, 1.5, 3.0])
    said = {"RAS": (1, 1), "right-anterior-superior": (1, 1), "LAS": (-1, 1), "left-posterior-superior": (-1, -1)}
    for n, (space, flip) in enumerate(said.items()):
        directions = " ".join("(" + ",".join(map(str, column)) + ")" for column in (place * np.diag([*flip, 1])).T)
        fields = {"space": space, "space_directions": directions, "space_origin": "(0,0,0)"}
        path = save_nrrd(tmp_path / f"{n}.nrrd", body(), "RAS", **fields)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.hu, body())
        np.testing.assert_allclose(volume.affine, RAS)


def test_axes_of_one_are_dropped_and_more_are_refused(tmp_path):
    vectors = "(2.0,0.0,0.0) (0.0,1.5,0.0) (0.0,0.0,3.0)"
    four = {"dimension": "4", "kinds": "list domain domain domain", "space_directions": f"none {vectors}"}
    path = save_nrrd(tmp_path / "a.nrrd", body(), sizes="1 24 16 20", **four)
    np.testing.assert_array_equal(read_volume(path).hu, body())
    path = save_nrrd(tmp_path / "a.nrrd", body(), sizes="2 24 8 20", **four)
    assert "several values per voxel" in refused(path)
    four = {"NDims": "4", "TransformMatrix": _text(np.eye(4)), "Offset": "0 0 0 0", "ElementSpacing": "2 1.5 3 1"}
    path = save_metaimage(tmp_path / "a.mha", body()[:, ::-1, ::-1], "RAS", DimSize="24 16 20 1", **four)
    np.testing.assert_array_equal(read_volume(path).hu, body())
    path = save_metaimage(tmp_path / "a.mha", body(), DimSize="24 16 10 2", **four)
    assert "is not a volume" in refused(path)


def _text(values):
    return " ".join(map(str, np.ravel(values)))


def test_voxels_in_several_files_and_behind_other_bytes(tmp_path):
    array = body()[:, ::-1, ::-1].transpose(0, 2, 1)  # (k, j, i) of LPS
    for n in range(20):
        (tmp_path / f"{n:02d}.raw").write_bytes(array[n].tobytes())
    names = "\n".join(f"{n:02d}.raw" for n in range(20))
    nrrd = save_nrrd(tmp_path / "a.nhdr", body(), encoding="raw", detached="whole.raw", data_file=f"LIST\n{names}")
    meta = save_metaimage(tmp_path / "a.mhd", body(), ElementDataFile=f"LIST\n{names}")
    skipped = save_nrrd(tmp_path / "skip.nhdr", body(), encoding="raw", detached="skip.raw", byte_skip="-1")
    (tmp_path / "skip.raw").write_bytes(b"xyz" + array.tobytes())
    packed = save_nrrd(tmp_path / "gz.nhdr", body(), detached="skip.gz", byte_skip="3")
    (tmp_path / "skip.gz").write_bytes(gzip.compress(b"xyz" + array.tobytes()))
    behind = save_metaimage(tmp_path / "b.mhd", body(), HeaderSize="3")
    (tmp_path / "b.raw").write_bytes(b"xyz" + array.tobytes())
    last = save_metaimage(tmp_path / "c.mhd", body(), HeaderSize="-1", ElementDataFile="b.raw")
    for path in (nrrd, meta, skipped, packed, behind, last):
        np.testing.assert_array_equal(read_volume(path).hu, body(), err_msg=path.name)


def test_gzip_of_many_members_and_tape_padding_is_read(tmp_path):
    data = save(tmp_path / "scan.nii", body()).read_bytes()
    cut = [gzip.compress(data[at : at + 1000]) for at in range(0, len(data), 1000)]
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"".join(cut) + gzip.compress(b"") + bytes(512))
    np.testing.assert_array_equal(read_volume(path).hu, body())


@pytest.mark.parametrize("name", MAKERS)
def test_links_may_lead_anywhere_inside_the_root_and_nowhere_else(tmp_path, name):
    root, outside = tmp_path / "root", tmp_path / "outside"
    path = MAKERS[name](outside, body())
    inside = MAKERS[name](root / "deep", body())
    for target, allowed in ((inside, True), (path, False)):
        link = root / "link"
        link.unlink(missing_ok=True)
        if target.is_dir():
            link.symlink_to(target)
        else:
            link = root / target.name
            link.unlink(missing_ok=True)
            for file in target.parent.iterdir():
                (root / file.name).unlink(missing_ok=True)
                (root / file.name).symlink_to(file)
        if allowed:
            np.testing.assert_array_equal(read_volume(link, root=root).hu, body())
        else:
            assert "out of its folder" in refused(link, root=root)


def test_a_file_that_the_user_names_may_be_a_link(tmp_path):
    path = save(tmp_path / "there/scan.nii.gz", body())
    (tmp_path / "link.nii.gz").symlink_to(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "link.nii.gz").hu, body())


def test_sheared_files_are_straightened_like_a_leaning_gantry(tmp_path):
    sheared = RAS.copy()
    sheared[1, 2] = 3.0 * np.tan(np.deg2rad(20))  # each plane a little more anterior
    labels = read_labels(save(tmp_path / "map.nii.gz", organs(), "RAS", sheared), None)
    volume = read_volume(save(tmp_path / "scan.nii.gz", body(), "RAS", sheared))
    assert volume.notes == ("a gantry tilt of 20.0° was undone",)
    assert resample(volume, None, (6.0, 2.0, 1.5))[0].notes == volume.notes
    assert volume.hu.shape == labels.shape == (20, 24, 16 + 14)  # 19 planes · 3 mm · tan 20° / 1.5 mm = 13.8 voxels
    np.testing.assert_allclose(volume.affine, RAS, atol=1e-6)
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.5))
    for k in (0, 11, 19):
        shift = k * 2 * np.tan(np.deg2rad(20))
        centre = (body()[k] > -500) @ np.arange(16) / np.maximum(1, (body()[k] > -500).sum(1))
        found = (volume.hu[k] > -500) @ np.arange(30) / np.maximum(1, (volume.hu[k] > -500).sum(1))
        assert np.abs(found - centre - shift)[centre > 0].max(initial=0) <= 0.5
        assert (labels[k] > 0).sum() == (organs()[k] > 0).sum()
    assert volume.hu[0, :, 16:].max() == volume.hu[-1, :, :13].max() == -1024  # nothing was measured there
    in_plane = RAS.copy()
    in_plane[0, 1] = 0.5
    assert "not at right angles" in refused(save(tmp_path / "scan.nii.gz", body(), "RAS", in_plane))


def test_qform_and_sform_must_say_the_same_place(tmp_path):
    def with_forms(sform, qform):
        image = nibabel.Nifti1Image(body().transpose(1, 2, 0), None)
        image.set_sform(sform, 1)
        image.set_qform(qform, 1)
        nibabel.save(image, tmp_path / "scan.nii.gz")
        return tmp_path / "scan.nii.gz"

    flipped, moved, rounded = np.diag([-2.0, 1.5, 3.0, 1.0]), RAS.copy(), RAS.copy()
    moved[0, 3], rounded[0, 3] = 2.5, 0.4
    what = refused(with_forms(RAS, flipped))
    assert "sform and its qform disagree" in what and "axes RAS and LAS" in what
    assert "1.25 voxels apart" in refused(with_forms(RAS, moved))
    np.testing.assert_allclose(read_volume(with_forms(RAS, rounded)).affine, RAS)


def test_a_label_map_of_another_shape_is_refused_before_it_is_read(tmp_path):
    scan = read_volume(save(tmp_path / "scan.nii.gz", body()))
    path = save(tmp_path / "map.nii", np.zeros((40, 24, 16), np.uint8))
    path.write_bytes(path.read_bytes()[:400])  # truncated, but that is not what is wrong first
    with pytest.raises(NemesisError, match="another shape than its scan"):
        read_labels(path, scan)


def test_label_numbers_beyond_255_may_come_late(tmp_path):
    labels = organs((40, 300, 300)).astype(np.uint16)
    labels[-1, 0, 0] = 300  # in the last slab
    found = read_labels(save(tmp_path / "map.nii.gz", labels, "RAS"), None)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, labels)


@settings(derandomize=True)
@given(
    st.lists(st.integers(-32768, 65535), min_size=1, max_size=5),
    st.sampled_from([1, 2, -1, 0.5, 1.25]),
    st.sampled_from([0, -1024, 3.5, 100]),
    st.sampled_from(["i2", "u2", "i4", "f4"]),
)
def test_rescaling_is_exact(values, slope, intercept, kind):
    stored = np.array([v for v in values if kind != "u2" or v >= 0] or [0]).astype(kind)
    np.testing.assert_array_equal(rescaled(stored, slope, intercept), stored.astype(float) * slope + intercept)


@pytest.mark.parametrize(("hu", "what"), [
    (-body().astype(int), "inverted"),
    (body().astype(int) + 1024, "rescale intercept (−1024) was not applied"),
    (np.where(np.arange(16) < 2, -2000, body().astype(int) + 1024), "as air and lung do; it looks like CT whose rescale"),
    (np.random.default_rng(0).integers(0, 900, body().shape), "as in MR, in pictures"),
])  # fmt: skip
def test_what_is_wrong_with_the_values_is_told_apart(tmp_path, hu, what):
    assert what in refused(save(tmp_path / "scan.nii.gz", hu.astype(np.int16)))


def test_faults_never_steer_a_terminal_and_can_always_be_written():
    fault = Fault("scan\x1b[2J\n\udcff.nii.gz", "is 5 × 3 – ‘no’ scan\x07", "Löschen")
    assert fault.where == "scan\\x1b[2J\\n\\udcff.nii.gz" and fault.what == "is 5 × 3 – ‘no’ scan\\x07"
    str(fault).encode()


MEMORY = """
    import resource, sys
    from pathlib import Path
    from nemesis.data.readers import read_volume

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    small, large = map(Path, sys.argv[1:])
    read_volume(small)
    before = peak()
    volume = read_volume(large)
    print(peak() - before, volume.hu.nbytes)
"""


@pytest.mark.parametrize("name", ["nifti", "nifti f8", "nrrd gzip", "mhd zraw", "dicom"])
def test_reading_takes_the_memory_of_one_array_and_a_slab(tmp_path, name):
    large = np.tile(body((20, 256, 256)), (12, 1, 1))
    kind = large.astype(">f8") if name == "nifti f8" else large
    maker = MAKERS[name.removesuffix(" f8")]
    paths = [maker(tmp_path / "small", body()), maker(tmp_path / "large", kind)]
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), *map(str, paths)]
    used, array = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert used < array + (24 << 20), f"{used >> 20} MiB for an array of {array >> 20}"


def test_lps_and_ras_are_what_they_are_called():
    assert nibabel.aff2axcodes(LPS @ RAS) == ("L", "P", "S")
