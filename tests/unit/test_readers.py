import gzip
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_scans import RAS, REAL, body, organs, save

from nemesis.data.phantom import make_subject
from nemesis.data.readers import not_ct, read_labels, read_volume, resample, resample_onto
from nemesis.errors import NemesisError

ORIENTATIONS = ["".join(p) for axes in itertools.permutations(("LR", "PA", "IS")) for p in itertools.product(*axes)]


def fault(function, *args):
    with pytest.raises(NemesisError) as caught:
        function(*args)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].remedy
    return str(caught.value)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_any_orientation_of_storage_gives_the_house_axes(tmp_path, axes):
    hu = body()
    volume = read_volume(save(tmp_path / "scan.nii", hu, axes))
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_allclose(volume.affine, RAS, atol=1e-5)
    np.testing.assert_allclose(volume.stored, nibabel.load(tmp_path / "scan.nii").affine)
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.5))
    assert volume.hu.dtype == np.int16
    assert volume.hu.flags.c_contiguous


def test_left_and_right_are_where_the_affine_says(tmp_path):
    hu = body()
    hu[:, -1] = 700  # H runs left to right, so this is the patient's right side: the highest x in RAS
    volume = read_volume(save(tmp_path / "scan.nii.gz", hu, "LPS"))
    assert (volume.hu[:, -1] == 700).all()
    image = nibabel.as_closest_canonical(nibabel.load(tmp_path / "scan.nii.gz"))
    assert (np.asarray(image.dataobj)[-1] == 700).all()


def test_oblique_scans_take_the_nearest_axes(tmp_path):
    angle = np.deg2rad(20)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = read_volume(save(tmp_path / "scan.nii.gz", body(), "LAS", turned @ RAS))
    np.testing.assert_array_equal(volume.hu, body())
    np.testing.assert_allclose(volume.affine, turned @ RAS, atol=1e-4)
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.5), rel=1e-5)


def test_slope_and_intercept_give_hu(tmp_path):
    path = save(tmp_path / "scan.nii.gz", (2 * (body() + 1024)).astype(np.uint16))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(raw)))
    np.testing.assert_array_equal(read_volume(path).hu, body())


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4", ">i2"])
def test_other_number_types_are_rounded_to_hu(tmp_path, dtype):
    image = nibabel.Nifti1Image(body().transpose(1, 2, 0).astype(dtype), RAS)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").hu, body())


def test_a_fourth_axis_of_one_is_dropped_and_more_is_refused(tmp_path):
    array = body().transpose(1, 2, 0)[..., None]
    nibabel.save(nibabel.Nifti1Image(array, RAS), tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "one.nii.gz").hu, body())
    nibabel.save(nibabel.Nifti1Image(np.repeat(array, 2, 3), RAS), tmp_path / "two.nii.gz")
    assert "is not a volume" in fault(read_volume, tmp_path / "two.nii.gz")


def test_content_says_whether_it_is_compressed_not_the_name(tmp_path):
    plain, packed = tmp_path / "plain.nii.gz", tmp_path / "packed.nii"
    plain.write_bytes(save(tmp_path / "scan.nii", body()).read_bytes())
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        np.testing.assert_array_equal(read_volume(path).hu, body())


@pytest.mark.parametrize("kept", [0, 1, 5, 0.01, 0.5, 0.99, -1])
def test_truncated_files(tmp_path, kept):
    path = save(tmp_path / "scan.nii.gz", body())
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    assert str(path) in fault(read_volume, path)


def test_truncated_uncompressed_and_other_files(tmp_path):
    path = save(tmp_path / "scan.nii", body())
    path.write_bytes(path.read_bytes()[:-100])
    assert "is truncated (it ends in plane 20 of 20)" in fault(read_volume, path)
    path.write_bytes(b"\x89PNG....")
    assert "is not NIfTI, NRRD or MetaImage but a PNG picture" in fault(read_volume, path)
    assert "No such file" in fault(read_volume, tmp_path / "nothing.nii.gz")
    assert "cannot be read" in fault(read_volume, tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), mask=st.integers(1, 255), packed=st.booleans())
def test_a_damaged_byte_is_refused_or_harmless_but_never_anything_else(tmp_path, position, mask, packed):
    path = save(tmp_path / "scan.nii", body((9, 10, 8)))
    data = bytearray(path.read_bytes())
    position = position % len(data) if packed else position % 352
    if packed:
        data = bytearray(gzip.compress(bytes(data), mtime=0))
        position %= len(data)
    data[position] ^= mask
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except NemesisError:
        return
    if packed:  # the checksum leaves only bytes of the gzip header that mean nothing
        np.testing.assert_array_equal(volume.hu, body((9, 10, 8)))


def noise(shape=(20, 24, 16)):
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.full((20, 24, 16), 7, np.int16), "every value is 7"),
        ((noise() * 255).astype(np.uint8), "no value is negative"),
        ((noise() * 3000).astype(np.int16), "no value is negative"),
        (body() + 1024, "no value is negative"),
        (noise().astype(np.float32), "all values lie in 0 to 1"),
        (np.random.default_rng(0).normal(0, 1, (20, 24, 16)).astype(np.float32), "as air and lung do"),
        (np.clip(body(), -140, 250), "as air and lung do"),
        (np.where(body() < -500, -2000, body() + 1024).astype(np.int16), "as air and lung do"),
        (np.full((20, 24, 16), -1000, np.int16) + (noise() * 20).astype(np.int16), "as soft tissue does"),
        (np.where(noise() > 0.5, np.nan, -500).astype(np.float32), "not numbers"),
        ((body() * 100.0).astype(np.float32), "are not HU"),
        (body((7, 24, 16)), "too small"),
    ],
)
def test_what_is_not_ct_is_refused(tmp_path, array, what):
    assert what in fault(read_volume, save(tmp_path / "scan.nii.gz", array))


def test_colour_is_refused(tmp_path):
    colour = np.zeros((16, 16, 16), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colour, RAS), tmp_path / "scan.nii.gz")
    assert "colour" in fault(read_volume, tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(
    ("affine", "what"),
    [(np.diag([2e-3, 2e-3, 2e-3, 1]), "voxel size"), (np.diag([200.0, 2, 2, 1]), "voxel size"),
     (np.array([[2.0, 2, 0, 0], [0, 1e-3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), "collapses")],
)  # fmt: skip
def test_impossible_headers_are_refused(tmp_path, affine, what):
    image = nibabel.Nifti1Image(body().transpose(1, 2, 0), None)
    image.set_sform(affine, 1)
    image.set_qform(np.eye(4), 0)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    assert what in fault(read_volume, tmp_path / "scan.nii.gz")


def test_without_orientation_left_and_right_are_unknown(tmp_path):
    path = save(tmp_path / "scan.nii.gz", body())
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(gzip.compress(bytes(raw)))
    assert "left and right are unknown" in fault(read_volume, path)


def test_labels_follow_their_scan_whatever_their_storage(tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii.gz", body(), "RAS"))
    labels = read_labels(save(tmp_path / "map.nii.gz", organs().astype(np.float32), "LPS"), volume)
    np.testing.assert_array_equal(labels, organs())
    assert labels.dtype == np.uint8
    wide = read_labels(save(tmp_path / "wide.nii.gz", organs().astype(np.int16) * 300), volume)
    assert wide.dtype == np.uint16
    assert wide.max() == 600


def test_faulty_label_maps_are_refused(tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii.gz", body()))
    path = tmp_path / "map.nii.gz"
    other = save(path, organs()[:, :-1])
    assert "another shape than its scan (20×23×16 against 20×24×16" in fault(read_labels, other, volume)
    assert read_labels(other, None).shape == (20, 23, 16)
    assert "not whole numbers" in fault(read_labels, save(path, organs() * np.float32(0.5)), volume)
    assert "outside 0 to 65535" in fault(read_labels, save(path, body()), volume)
    moved = RAS.copy()
    moved[0, 3] = 2.0
    assert "lies elsewhere" in fault(read_labels, save(path, organs(), affine=moved), volume)
    moved[0, 3] = 1e-3
    read_labels(save(path, organs(), affine=moved), volume)


def test_resampling_keeps_extent_place_and_labels(tmp_path):
    hu = body((24, 30, 20))
    labels = organs((24, 30, 20))
    volume = read_volume(save(tmp_path / "scan.nii.gz", hu, "LPS"))
    new, moved = resample(volume, labels, (6.0, 2.0, 0.75))
    assert new.hu.shape == moved.shape == (12, 30, 40)
    assert new.hu.dtype == np.int16
    assert moved.dtype == labels.dtype
    assert set(np.unique(moved)) <= set(np.unique(labels))
    assert new.hu.mean() == pytest.approx(hu.mean(), abs=30)
    np.testing.assert_allclose(np.linalg.norm(new.affine[:3, :3], axis=0), (2.0, 0.75, 6.0))
    for side in (0, 1):  # outer faces of both grids, in mm
        faces = [v.affine @ [*(np.array(v.hu.transpose(1, 2, 0).shape) * side - 0.5), 1.0] for v in (volume, new)]
        np.testing.assert_allclose(faces[0], faces[1], atol=1e-9)
    ramp = volume.hu.copy()
    ramp[:] = np.arange(24)[:, None, None] * 10
    back = resample_onto(new, volume)
    assert back.hu.shape == hu.shape and (back.spacing, back.stored.tolist()) == (volume.spacing, volume.stored.tolist())
    slope, _ = resample(type(volume)(ramp, volume.spacing, volume.affine), None, (6.0, 2.0, 1.5))
    np.testing.assert_array_equal(slope.hu[:, 0, 0], 5 + 20 * np.arange(12))
    assert resample(volume, labels, (3.0, 2.0, 1.5)) == (volume, labels)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
def test_real_scans_are_ct_and_their_label_maps_are_not():
    scans = [*REAL.glob("ct*/*/image.nii.gz"), *sorted(REAL.glob("openkbp/imagesTr/*.nii.gz"))[::10]]
    assert len(scans) > 8
    for path in scans:
        hu = read_volume(path).hu
        assert "it is inverted" in not_ct(-hu)
        assert "rescale intercept (−1024) was not applied" in not_ct(np.maximum(hu, -1024) + np.int16(1024))
    for path in REAL.glob("ct/*/label*.nii.gz"):
        assert "no value is negative" in fault(read_volume, path)


@pytest.mark.parametrize("index", [0, 1])
def test_phantoms_are_ct(index):
    assert not_ct(make_subject(0, index, 8.0).hu) is None
