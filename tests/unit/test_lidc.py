"""LIDC's XML: outlines → voxels on the grid of the series, by the votes of its readers."""

import numpy as np
import pytest
from replicas import SHAPE, box, in_file, lidc_xml, ring, roi
from scans import save_dicom
from small_scans import body

from nemesis.data.lidc import read_nodules, series_of
from nemesis.data.readers import read_volume
from nemesis.errors import NemesisError


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return read_volume(save_dicom(tmp_path_factory.mktemp("series"), body()))


def drawn(folder, volume, *readers):
    (folder / "nodules.xml").write_text(lidc_xml("1.2.3", readers))
    return read_nodules(folder / "nodules.xml", volume)


def filled(depths, heights, widths):
    """The box of voxels from the first to the last of each."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(low, high + 1) for low, high in (depths, heights, widths))] = 1
    return labels


BOX = (8, 11), (6, 12), (5, 9)


@pytest.mark.parametrize(("saw", "of"), [(1, 1), (1, 2), (2, 3), (2, 4), (3, 4), (4, 4)])
def test_what_at_least_half_of_the_readers_saw_is_nodule(tmp_path, volume, saw, of):
    labels = drawn(tmp_path, volume, *[[box(*BOX)]] * saw, *[[]] * (of - saw))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, filled(*BOX))


@pytest.mark.parametrize(("saw", "of"), [(1, 3), (1, 4), (0, 2)])
def test_what_fewer_saw_is_not(tmp_path, volume, saw, of):
    assert not drawn(tmp_path, volume, *[[box(*BOX)]] * saw, *[[]] * (of - saw)).any()


def test_a_voxel_counts_once_for_a_reader_whatever_nodules_overlap_there(tmp_path, volume):
    assert not drawn(tmp_path, volume, [box(*BOX), box(*BOX)], [], [], []).any()
    both = drawn(tmp_path, volume, [box((8, 9), (6, 8), (5, 6)), box((11, 12), (9, 12), (7, 9))])
    np.testing.assert_array_equal(both, filled((8, 9), (6, 8), (5, 6)) | filled((11, 12), (9, 12), (7, 9)))


def test_the_outline_is_not_part_of_the_nodule_even_where_it_runs_diagonally(tmp_path, volume):
    column, row = in_file(11, 8)
    diamond = [(4, 0), (3, 1), (2, 2), (1, 3), (0, 4), (-1, 3), (-2, 2), (-3, 1), (-4, 0)]
    diamond += [(-3, -1), (-2, -2), (-1, -3), (0, -4), (1, -3), (2, -2), (3, -1), (4, 0)]  # the first point again, as LIDC has it
    labels = drawn(tmp_path, volume, [[roi(10, [(column + x, row + y) for x, y in diamond])]])
    h, w = np.mgrid[: SHAPE[1], : SHAPE[2]]
    np.testing.assert_array_equal(labels[10], np.abs(h - 11) + np.abs(w - 8) < 4)
    assert labels.sum() == labels[10].sum()
    gaps = drawn(tmp_path, volume, [[roi(10, [(column + x, row + y) for x, y in diamond[::4]])]])  # corners alone
    np.testing.assert_array_equal(gaps, labels)


def test_a_region_that_is_cut_out_keeps_its_outline(tmp_path, volume):
    hole = np.array([in_file(8, 6), in_file(9, 7)])
    cut = roi(9, ring(hole.min(0), hole.max(0)), inside=False)
    expected = filled(*BOX)
    expected[9, 8:10, 6:8] = 0
    np.testing.assert_array_equal(drawn(tmp_path, volume, [[*box(*BOX), cut]]), expected)
    other = drawn(tmp_path, volume, [box(*BOX), [*box((9, 9), (8, 9), (6, 7)), cut]])  # of another nodule: nothing of this one
    np.testing.assert_array_equal(other, filled(*BOX))


def test_single_points_mark_no_voxels(tmp_path, volume):
    assert not drawn(tmp_path, volume, [[roi(5, [in_file(10, 10)])]]).any()


def test_files_in_any_orientation_and_place(tmp_path):
    place = np.diag([2.0, 1.5, 3.0, 1.0])
    place[:3, 3] = -100, 37.5, -812.25
    scan = read_volume(save_dicom(tmp_path / "series", body(), affine=place))
    shifted = [roi(d, ring(*corners()), z=place[2, 3] + 3.0 * d) for d in range(8, 12)]
    np.testing.assert_array_equal(drawn(tmp_path, scan, [shifted]), filled(*BOX))


def corners():
    both = np.array([in_file(6, 5), in_file(12, 9)])
    return both.min(0), both.max(0)


@pytest.mark.parametrize(
    ("rois", "what"),
    [
        ([roi(5, ring(*corners()), z=16.4)], "no axial slice"),
        ([roi(5, ring(*corners()), z=-30.0)], "leaves the scan"),
        ([roi(5, ring(*corners()), z=1e300)], "leaves the scan|no axial slice"),
        ([roi(5, ring((30, 3), (40, 9)))], "leaves the scan"),
        ([roi(5, ring((-9, 3), (4, 9)))], "leaves the scan"),
        ([roi(5, ring(*corners()), z="nan")], "without a place"),
        ([roi(5, [("x", 1), (2, 2)])], "without a place"),
        ([roi(5, [("9" * 5000, 1), (2, 2)])], "without a place"),
        ([roi(5, ring(*corners())).replace("TRUE", "PERHAPS")], "without a place"),
        ([roi(5, ring(*corners())).replace("imageZposition", "height")], "without a place"),
    ],
)
def test_outlines_that_fit_no_slice_are_refused(tmp_path, volume, rois, what):
    with pytest.raises(NemesisError, match=what) as error:
        drawn(tmp_path, volume, [rois])
    assert "nodules.xml" in error.value.faults[0].where


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">{}]><a>&i;</a>'.format(
    "".join(f'<!ENTITY {name} "{f"&{last};" * 10}">' for last, name in zip("bcdefgh", "cdefghi", strict=True))
)
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


TORN = lidc_xml("1.2", [[]])[:300]


@pytest.mark.parametrize(
    "content", ["", "no xml", TORN, BOMB, OUTSIDE, b"\xff\xfe\x00", '<?xml version="1.0" encoding="x"?><a/>']
)
def test_what_is_no_xml_is_refused(tmp_path, volume, content):
    path = tmp_path / "nodules.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for look in (series_of, lambda path: read_nodules(path, volume)):
        with pytest.raises(NemesisError, match="cannot be read as XML"):
            look(path)


def test_an_xml_too_large_for_the_set_is_not_opened(tmp_path):
    with open(tmp_path / "nodules.xml", "wb") as file:
        file.truncate(1 << 26)
    with pytest.raises(NemesisError, match="too large"):
        series_of(tmp_path / "nodules.xml")


def test_the_series_of_an_xml_and_xml_of_other_kinds(tmp_path, volume):
    path = tmp_path / "nodules.xml"
    path.write_text(lidc_xml("1.2.3", [[]]))
    assert series_of(path) == "1.2.3"
    path.write_text(lidc_xml("1.2.3", [], "IdriReadMessage"))
    assert series_of(path) is None
    with pytest.raises(NemesisError, match="holds 0 reading sessions"):
        read_nodules(path, volume)
    with pytest.raises(NemesisError, match="No such file"):
        read_nodules(tmp_path / "none.xml", volume)


def test_outlines_on_a_leaning_scan_are_refused_for_its_pixels_were_moved(tmp_path):
    leaning = read_volume(save_dicom(tmp_path / "series", body(), tilt=20))
    with pytest.raises(NemesisError, match="moved to undo a gantry tilt"):
        drawn(tmp_path, leaning, [box((8, 11), (6, 12), (5, 9))])


def test_without_its_scan_the_xml_is_checked_alone(tmp_path):
    assert drawn(tmp_path, None, [box(*BOX)]) is None
    with pytest.raises(NemesisError, match="without a place"):
        drawn(tmp_path, None, [[roi(5, [("x", 1), (2, 2)])]])
