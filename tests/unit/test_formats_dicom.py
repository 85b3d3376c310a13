import copy
import signal
import subprocess
import sys

import numpy as np
import pytest
from pydicom.dataset import Dataset
from scans import RAS, SYNTAXES, ct_slice, save_dicom, write_slice
from small_scans import body, organs, save

from nemesis.data.formats import open_raster
from nemesis.data.formats.decoding import Decoder, picture_size
from nemesis.data.formats.dicom import HEADER
from nemesis.data.listings import survey
from nemesis.data.readers import read_labels, read_volume
from nemesis.datasets import DicomTree
from nemesis.errors import NemesisError

UID = "1.2.826.0.1.3680043.8.498."


def refused(folder, series=None):
    with pytest.raises(NemesisError) as caught:
        read_volume(folder, series)
    (fault,) = caught.value.faults
    assert fault.remedy
    assert "DOE" not in str(fault) and UID not in str(fault)
    return fault


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("signed", "intercept", "bits"), [(False, -1024, 12), (False, -1024, 16), (True, 0, 12), (True, 0, 16)])
def test_every_encoding_of_signed_and_unsigned_pixels(tmp_path, syntax, signed, intercept, bits):
    folder = save_dicom(tmp_path / "series", body(), syntax=syntax, signed=signed, intercept=intercept, bits=bits)
    np.testing.assert_array_equal(read_volume(folder).hu, body())


def test_bits_beyond_those_stored_mean_nothing(tmp_path):
    def overlay(_, dataset):
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0xA000).tobytes()
        return dataset

    np.testing.assert_array_equal(read_volume(save_dicom(tmp_path / "a", body(), bits=12, change=overlay)).hu, body())
    folder = save_dicom(tmp_path / "b", body(), bits=12, signed=True, intercept=0, change=overlay)
    np.testing.assert_array_equal(read_volume(folder).hu, body())


def test_slope_and_intercept_of_every_slice(tmp_path):
    def doubled(k, dataset):
        if k % 2:
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") // 2).astype("<u2").tobytes()
            dataset.RescaleSlope = "2"
        return dataset

    hu = body() // 2 * 2
    np.testing.assert_array_equal(read_volume(save_dicom(tmp_path / "a", hu, change=doubled)).hu, hu)
    np.testing.assert_array_equal(read_volume(save_dicom(tmp_path / "b", hu, slope=0.5, intercept=-1000)).hu, hu)


def test_slices_are_sorted_by_their_place_not_by_name_or_number(tmp_path):
    def renumbered(k, dataset):
        dataset.InstanceNumber = 1 + (k * 7) % 20
        return dataset

    folder = save_dicom(tmp_path / "series", body(), names=lambda k: f"{(k * 13) % 20:03d}", change=renumbered)
    np.testing.assert_array_equal(read_volume(folder).hu, body())


def test_slices_named_by_their_uid_are_all_read_or_refused(tmp_path):
    folder = save_dicom(tmp_path / "series", body(), names="1.2.840.{}".format)
    np.testing.assert_array_equal(read_volume(folder).hu, body())
    (folder / "1.2.840.20").write_bytes(b"")  # the last one, so that no gap tells of it
    assert "is not DICOM" in refused(folder).what


def test_one_series_of_several_and_files_that_are_none(tmp_path):
    folder = save_dicom(tmp_path, body(), series=UID + "1")
    save_dicom(tmp_path, body(seed=1), series=UID + "2", names="2-{:03d}.dcm".format)
    (folder / "annotation.xml").write_text("<x/>")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "LICENSE").write_text("CC BY")
    (folder / "deeper").mkdir()
    np.testing.assert_array_equal(read_volume(folder, UID + "1").hu, body())
    np.testing.assert_array_equal(read_volume(folder, UID + "2").hu, body(seed=1))
    assert "holds 2 DICOM series" in refused(folder).what
    assert "does not hold the series" in refused(folder, UID + "3").what


@pytest.mark.parametrize("missing", [{10}, {5, 6, 7}])
def test_missing_slices_are_refused_with_their_place(tmp_path, missing):
    fault = refused(save_dicom(tmp_path / "series", body(), change=lambda k, dataset: None if k in missing else dataset))
    before = 3.0 * (min(missing) - 2)
    assert "slices are missing" in fault.what and f"{before:.2f} and {before + 3 * (len(missing) + 1):.2f} mm" in fault.what


def moved(offsets):
    def change(k, dataset):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        dx, dy, dz = offsets.get(k, (0, 0, 0))
        dataset.ImagePositionPatient = [x + dx, y + dy, z + dz]
        return dataset

    return change


def test_uneven_spacing_is_refused_with_its_place_and_rounding_is_not(tmp_path):
    rounded = {k: (0, 0, 0.05 * (-1) ** k) for k in range(1, 21)}
    volume = read_volume(save_dicom(tmp_path / "rounded", body(), change=moved(rounded)))
    np.testing.assert_array_equal(volume.hu, body())
    assert volume.spacing[0] == pytest.approx(3.0, abs=0.01)
    fault = refused(save_dicom(tmp_path / "one", body(), change=moved({7: (0, 0, 0.8)})))
    assert "unevenly spaced" in fault.what and "18.80 mm" in fault.what and fault.where.endswith("1-007.dcm")
    finer = {k: (0, 0, 0.5 * max(0, k - 10)) for k in range(1, 21)}
    assert "unevenly spaced" in refused(save_dicom(tmp_path / "half", body(), change=moved(finer))).what
    assert "shifted sideways" in refused(save_dicom(tmp_path / "side", body(), change=moved({7: (4, 0, 0)}))).what


def test_identical_duplicates_are_dropped_with_a_note_and_different_ones_are_refused(tmp_path):
    def twice(other):
        def change(k, dataset):
            again = copy.deepcopy(dataset)
            again.SOPInstanceUID += ".9"
            if other:
                again.PixelData = bytes(len(again.PixelData))
            return [dataset, again] if k in (3, 12) else dataset

        return change

    volume = read_volume(save_dicom(tmp_path / "same", body(), change=twice(False)))
    np.testing.assert_array_equal(volume.hu, body())
    assert volume.notes == ("2 slice(s) were there again with the same pixels and left out",)
    fault = refused(save_dicom(tmp_path / "other", body(), change=twice(True)))
    assert "lie at the same place but show something else" in fault.what
    assert fault.where.endswith("1-003.dcm and 1-again-1-003.dcm")


def field(x, y, z):
    """A smooth made-up patient: HU at RAS mm."""
    return np.where(np.hypot(x - 30, y - 40) < 30, 200 * np.sin(x / 9) * np.cos(y / 11) + z, -1000.0)


@pytest.mark.parametrize("tilt", [15.0, -22.5])
@pytest.mark.parametrize("axes", ["LPS", "RPS", "LAI"])
def test_gantry_tilt_is_undone(tmp_path, tilt, axes):
    shape, step = (20, 40, 60), np.diag([2.0, 1.5, 3.0])
    straight = np.stack(np.meshgrid(*(np.arange(n) for n in (40, 60, 20)), indexing="ij"), -1) @ step
    # what a leaning gantry measures: slice k lies k · 3 mm · tan(tilt) further along its rows' normal
    down = -1 if axes[1] == "P" else 1  # in RAS mm, of rows that run to posterior or anterior
    up = 1 if axes[2] == "S" else -1
    first = 0 if up == 1 else 19
    lean = down * np.tan(np.deg2rad(tilt)) * up * (straight[..., 2] - 3 * first)
    measured = field(straight[..., 0], straight[..., 1] + lean, straight[..., 2]).transpose(2, 0, 1)
    folder = save_dicom(tmp_path / "series", np.rint(measured).astype(np.int16), axes, signed=True, intercept=0, tilt=tilt)
    volume = read_volume(folder)
    assert volume.notes == (f"a gantry tilt of {abs(tilt):.1f}° was undone",)
    assert volume.spacing == pytest.approx((3.0, 2.0, 1.5))
    d, h, w = volume.hu.shape
    assert (d, h) == shape[:2] and w == 60 + int(np.ceil(19 * 2 * np.tan(np.deg2rad(abs(tilt)))))
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), np.arange(d), indexing="ij"), -1)
    x, y, z = np.moveaxis(grid @ volume.affine[:3, :3].T + volume.affine[:3, 3], -1, 0)
    truth = field(x, y, z).transpose(2, 0, 1)
    inside = np.hypot(x - 30, y - 40).transpose(2, 0, 1) < 27
    seen = inside & (volume.hu > -1000)
    assert seen.sum() > 0.8 * inside.sum()
    assert np.percentile(np.abs(volume.hu - truth)[seen], 99) < 8  # of linear interpolation, over 400 HU of swing
    assert volume.hu[0].min() == volume.hu[-1].min() == -1024  # where nothing was measured
    same = save(tmp_path / "map.nii.gz", np.zeros(volume.hu.shape, np.uint8), "RAS", volume.affine)
    assert read_labels(same, volume).shape == volume.hu.shape


def test_label_maps_may_lie_beside_a_series(tmp_path):
    volume = read_volume(save_dicom(tmp_path / "series", body()))
    np.testing.assert_array_equal(read_labels(save(tmp_path / "map.nii.gz", organs()), volume), organs())


@pytest.mark.parametrize(("signed", "value", "limit"), [(True, -2000, None), (True, 63536, None), (False, 0, 5)])
def test_padding_becomes_air_with_a_note(tmp_path, signed, value, limit):
    stored = -2000 if signed else 3  # the value, or one in the range up to the limit

    def padded(_, dataset):
        pixels = np.frombuffer(dataset.PixelData, "<i2").copy().reshape(dataset.Rows, dataset.Columns)
        pixels[0] = stored
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US" if value >= 0 else "SS", value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "US", limit)
        return dataset

    volume = read_volume(save_dicom(tmp_path / "series", body(), signed=signed, intercept=0 if signed else -1024, change=padded))
    expected = body()
    expected[:, :, -1] = -1024  # the first row of LPS is the most anterior: W runs to anterior
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.notes == (f"{20 * 24} voxels of padding were set to -1024 HU",)


def alter(**values):
    def change(_, dataset):
        for name, value in values.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        return dataset

    return change


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"Modality": "MR"}, "modality is 'MR'"),
        ({"Modality": None}, "modality is ''"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localiser"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "derived picture (SCREEN SAVE)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "derived picture (MIP)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "many frames in one file"),
        ({"NumberOfFrames": 4}, "many frames in one file"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "is inverted"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "holds colour"),
        ({"RescaleIntercept": None}, "has no RescaleIntercept"),
        ({"RescaleSlope": None}, "has no RescaleSlope"),
        ({"RescaleSlope": "0"}, "does not give HU"),
        ({"RescaleType": "MGML"}, "does not give HU"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of directions"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "not positive"),
        ({"PixelSpacing": [0.001, 0.001]}, "implausible voxel size"),
        ({"Rows": None}, "makes no sense"),
        ({"HighBit": 3, "BitsStored": 20}, "cannot be decoded"),
    ],
)
def test_what_is_no_ct_series_is_refused_by_name(tmp_path, values, what):
    assert what in refused(save_dicom(tmp_path / "series", body(), change=alter(**values))).what


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]}, "another orientation than the first slice"),
        ({"PixelSpacing": [1.5, 2.1]}, "another pixel spacing than the first slice"),
        ({"Rows": 24, "Columns": 16}, "another shape than the first slice"),
        ({"RescaleIntercept": None}, "has no RescaleIntercept"),
        ({"Modality": "PT"}, "modality is 'PT'"),
        ({"PixelData": b"\0" * 700}, "holds 700 bytes of pixels"),
        ({"PixelData": None}, "holds no pixels"),
    ],
)
def test_one_odd_slice_is_refused_by_its_file(tmp_path, values, what):
    def change(k, dataset):
        return alter(**values)(k, dataset) if k == 9 else dataset

    if values.get("PixelData", b"") is None:
        folder = save_dicom(tmp_path / "series", body())
        path = folder / "1-009.dcm"
        data = path.read_bytes()
        path.write_bytes(data[: data.rindex(b"\xe0\x7f\x10\x00")])
    else:
        folder = save_dicom(tmp_path / "series", body(), change=change)
    fault = refused(folder)
    assert what in fault.what and fault.where.endswith("1-009.dcm")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser (scout)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "a derived picture (MIP)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture (a picture of a screen)"),
    ],
)
def test_pictures_in_the_series_are_left_out_with_a_note(tmp_path, values, what):
    def change(k, dataset):
        return alter(**values)(k, dataset) if k == 20 else dataset

    volume = read_volume(save_dicom(tmp_path / "series", body(), change=change))
    np.testing.assert_array_equal(volume.hu, body()[:19])
    assert volume.notes == (f"1 image(s) in the series were left out: each is {what}",)


def test_a_folder_of_slices_whose_uids_were_emptied_is_a_series(tmp_path):
    def emptied(k, dataset):
        dataset.SeriesInstanceUID = ""
        return dataset

    folder = save_dicom(tmp_path, body(), change=emptied)
    for series in (None, ""):  # as the user, and as the listing, names it
        np.testing.assert_array_equal(read_volume(folder, series).hu, body())
    save_dicom(tmp_path, body(seed=1), series=UID + "2", names="2-{:03d}.dcm".format)
    assert "has no SeriesInstanceUID, which others beside it have" in refused(folder).what


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
def test_contours_of_many_megabytes_may_lie_beside_a_series(tmp_path, syntax):
    """Writers leave the length of such a list open, and the header read of it ends within."""
    folder = save_dicom(tmp_path, body(), series=UID + "1")
    outline = Dataset()
    outline.ContourData = ["12.345"] * 5_000
    drawn = Dataset()
    drawn.ContourSequence = [copy.deepcopy(outline) for _ in range(40)]
    contours = ct_slice(np.zeros((2, 2), np.int64))
    del contours.PixelData
    contours.SOPClassUID, contours.Modality, contours.ROIContourSequence = "1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", [drawn]
    contours.SOPInstanceUID, contours.SeriesInstanceUID, contours.PatientID = UID + "2.1", UID + "2", "DOE^JANE-ID"
    for of in (contours["ROIContourSequence"], drawn["ContourSequence"]):
        of.is_undefined_length = True
    drawn.is_undefined_length_sequence_item = True
    path = write_slice(folder / "contours.dcm", contours, syntax)
    assert path.stat().st_size > HEADER
    np.testing.assert_array_equal(read_volume(folder, UID + "1").hu, body())
    listing = survey(DicomTree(reader="dicom", name="tree"), tmp_path)
    assert not listing.faults and listing.passed_over["RTSTRUCT series"] == 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_slices_are_refused_by_their_file(tmp_path, syntax):
    folder = save_dicom(tmp_path / "series", body(), syntax=syntax)
    path = folder / "1-011.dcm"
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(folder).where == str(path)
    path.write_bytes(b"not at all")
    assert "is not DICOM" in refused(folder).what
    path.write_bytes(b"")
    assert "is not DICOM" in refused(folder).what


def test_a_decoder_that_dies_or_hangs_costs_its_slice_only(tmp_path, monkeypatch):
    folder = save_dicom(tmp_path / "series", body(), syntax="jpeg-lossless")
    picture = open_raster(folder).slabs.places[2][0].picture
    decoder = Decoder()
    assert decoder(picture).shape == (16, 24)
    decoder._process.kill()
    with pytest.raises(NemesisError, match="stops the decoder"):
        decoder(picture)
    monkeypatch.setattr("nemesis.data.formats.decoding.PATIENCE", 0)
    with pytest.raises(NemesisError, match="stops the decoder"):
        decoder(picture)
    monkeypatch.undo()
    assert decoder(picture).shape == (16, 24)
    decoder.close()


def test_a_picture_gets_seconds_of_computing_and_no_more():
    code = "from nemesis.data.formats import decoding\ndecoding.SECONDS = 1\ndecoding.limit()\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGXCPU
    code = "from nemesis.data.formats import decoding\ndecoding.limit()\nbytearray(decoding.MEMORY)"
    assert "MemoryError" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_compressed_pictures_must_have_the_size_that_the_header_says(tmp_path):
    for syntax in ("jpeg-lossless", "jpeg-ls", "jpeg2000"):
        folder = save_dicom(tmp_path / syntax, body(), syntax=syntax)
        path = folder / "1-001.dcm"
        data = path.read_bytes()
        start = data.rindex(b"\xff\x4f\xff\x51" if syntax == "jpeg2000" else b"\xff\xd8\xff")
        assert picture_size(data[start:]) == (16, 24)
        head = data[start : start + 40].replace((24).to_bytes(2, "big"), (9000).to_bytes(2, "big"))
        path.write_bytes(data[:start] + head + data[start + 40 :])
        assert "compressed picture is of 16×9000" in refused(folder).what
    assert picture_size(b"") is picture_size(b"\xff\xd8\xff") is picture_size(b"abc") is None


def resized(k, dataset):
    dataset.PixelSpacing = [1.0 + (k == 7), 1.0]
    return dataset


def phases(k, dataset):
    again = copy.deepcopy(dataset)
    again.PixelData = bytes(len(again.PixelData))
    return [dataset, again] if k == 3 else dataset


@pytest.mark.parametrize("change", [moved({7: (0, 0, 0.8)}), moved({7: (4, 0, 0)}), resized, phases])
def test_what_is_wrong_never_names_a_file_for_its_name_may_be_the_patients(tmp_path, change):
    folder = save_dicom(tmp_path / "series", body(), names="DOE-JANE-{:03d}.dcm".format, change=change)
    with pytest.raises(NemesisError) as caught:
        read_volume(folder)
    (fault,) = caught.value.faults
    assert "DOE" in fault.where and "DOE" not in fault.what + fault.remedy


def test_headers_that_lie_about_names_are_never_repeated(tmp_path):
    def change(_, dataset):
        dataset.add_new(0x00280030, "LO", "DOE^JANE")  # PixelSpacing
        return dataset

    assert "DOE" not in str(refused(save_dicom(tmp_path / "series", body(), change=change)))


def test_single_slices_and_empty_folders(tmp_path):
    assert "holds no DICOM file" in refused(tmp_path).what
    few = save_dicom(tmp_path / "few", body((7, 24, 16)))
    assert "too small (7×24×16" in refused(few).what
    one = save_dicom(tmp_path / "one", body((1, 24, 16)))
    assert "too small (1×24×16" in refused(one).what


def test_oblique_series_keep_their_place(tmp_path):
    turn = np.eye(4)
    angle = np.deg2rad(12)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = read_volume(save_dicom(tmp_path / "series", body(), affine=turn @ RAS))
    np.testing.assert_array_equal(volume.hu, body())
    np.testing.assert_allclose(volume.affine, turn @ RAS, atol=1e-6)
    assert volume.notes == ()
