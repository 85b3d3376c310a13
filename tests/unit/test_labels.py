"""Labels from a map or from masks, told together with the scan's faults."""

import numpy as np
import pytest
from small_scans import body, organs, save

from nemesis.data.labels import read_case, read_case_labels
from nemesis.data.listings import list_cases
from nemesis.datasets import ScanFiles
from nemesis.errors import NemesisError

NUMBERS = {"liver": 1, "left kidney": 2}


def masks(kind="exhaustive", **more):
    told = {"labels": {kind: "{case}/masks/{organ}.nii.gz"}, "label_numbers": NUMBERS, "masks": {"left kidney": "kidney_left"}}
    return ScanFiles(**{"reader": "files", "name": "ct", **told, **more})


@pytest.fixture
def folder(tmp_path):
    """A scan with masks of three structures, one of which no organ is."""
    save(tmp_path / "a/image.nii.gz", body(), "LPS")
    for name, number in {"liver": 1, "kidney_left": 2, "spleen": 1}.items():
        save(tmp_path / f"a/masks/{name}.nii.gz", (organs() == number).astype(np.uint8), "LPS")
    return tmp_path


def read(dataset, root):
    (case,) = list_cases(dataset, root)
    return read_case(dataset, case, root, dataset.label_numbers)


def told(dataset, root):
    with pytest.raises(NemesisError) as error:
        read(dataset, root)
    return [str(fault) for fault in error.value.faults]


def test_masks_become_one_map(folder):
    volume, labels, annotated = read(masks(), folder)
    np.testing.assert_array_equal(volume.hu, body())
    np.testing.assert_array_equal(labels, organs())
    assert labels.dtype == np.uint8 and annotated == ["liver", "left kidney"]
    _, wide, _ = read(masks(label_numbers={"liver": 700, "left kidney": 2}), folder)
    np.testing.assert_array_equal(wide, np.where(organs() == 1, 700, organs().astype(int)))


def test_a_mask_may_say_what_it_likes_for_inside(folder):
    save(folder / "a/masks/liver.nii.gz", (organs() == 1) * np.float32(255), "RAS")
    np.testing.assert_array_equal(read(masks(), folder)[1], organs())


def test_only_the_organs_that_are_named_are_read(folder):
    (folder / "a/masks/spleen.nii.gz").write_bytes(b"nothing")
    assert read(masks(), folder)[2] == ["liver", "left kidney"]
    before = list_cases(masks(), folder)[0]
    save(folder / "a/masks/spleen.nii.gz", organs())
    assert list_cases(masks(), folder)[0] == before
    save(folder / "a/masks/liver.nii.gz", 0 * organs(), "LPS")
    after = list_cases(masks(), folder)[0]
    assert after.fingerprint == before.fingerprint and after.label_fingerprint != before.label_fingerprint


def test_a_missing_mask_is_a_fault_or_an_organ_that_was_not_drawn(folder):
    (folder / "a/masks/kidney_left.nii.gz").unlink()
    with pytest.raises(NemesisError, match=r"masks are missing: kidney_left\.nii\.gz.*exclude: \[ct/a\]"):
        list_cases(masks(), folder)
    _, labels, annotated = read(masks("partial"), folder)
    np.testing.assert_array_equal(labels, organs() == 1)
    assert annotated == ["liver"]
    (folder / "a/masks/liver.nii.gz").unlink()
    with pytest.raises(NemesisError, match="masks are missing"):
        list_cases(masks("partial"), folder)


def test_an_empty_mask_says_that_the_organ_is_not_there(folder):
    for name in ("liver", "kidney_left"):
        save(folder / f"a/masks/{name}.nii.gz", 0 * organs(), "LPS")
    for kind in ("exhaustive", "partial"):
        _, labels, annotated = read(masks(kind), folder)
        assert not labels.any() and annotated == ["liver", "left kidney"]


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.ones_like(organs()), "shares 8 voxels with the mask of liver|shares .* with the mask of liver"),
        (organs(), "more than one number"),
        (organs()[:-1] == 2, "another shape than its scan"),
    ],
)
def test_masks_that_cannot_be_merged_are_refused(folder, mask, what):
    save(folder / "a/masks/kidney_left.nii.gz", mask.astype(np.uint8), "LPS")
    (fault,) = told(masks(), folder)
    import re

    assert re.search(what, fault) and "kidney_left.nii.gz" in fault


def test_faults_of_scan_and_labels_are_told_together(folder):
    (folder / "a/image.nii.gz").write_bytes(b"nothing")
    save(folder / "a/masks/kidney_left.nii.gz", (organs()[:-1] == 2).astype(np.uint8), "LPS")
    faults = told(masks(), folder)
    assert len(faults) == 2 and "image.nii.gz" in faults[0] and "another shape than the masks beside it" in faults[1]


def test_a_map_without_any_of_the_numbers_is_refused_where_organs_should_be_in_it(tmp_path):
    save(tmp_path / "a/image.nii.gz", body())
    save(tmp_path / "a/label.nii.gz", organs() * 20)
    dataset = ScanFiles(reader="files", name="ct", labels={"partial": "{case}/label.nii.gz"}, label_numbers=NUMBERS)
    assert "none of the label numbers 1, 2, only 20, 40" in told(dataset, tmp_path)[0]
    save(tmp_path / "a/label.nii.gz", organs() * 0)
    assert "only background" in told(dataset, tmp_path)[0]
    save(tmp_path / "a/label.nii.gz", (organs() == 1) * np.uint8(2))
    assert read(dataset, tmp_path)[2] == ["left kidney"]


def test_a_scan_without_labels(tmp_path):
    save(tmp_path / "a/image.nii.gz", body())
    dataset = ScanFiles(reader="files", name="ct")
    (case,) = list_cases(dataset, tmp_path)
    assert read_case_labels(dataset, case, tmp_path, None, NUMBERS) == (None, [])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": {"partial": "{organ}/{case}.nii.gz"}}, "after the last /"),
        ({"labels": {"partial": "{case}_{organ}.nii.gz"}}, "below a folder"),
        ({"labels": {"partial": "{case}/*_{organ}.nii.gz"}}, "beside no"),
        ({"image": "{case}/{organ}.nii.gz"}, "belongs into patterns of `labels`"),
        ({"masks": {"heart": "heart"}}, "label_numbers does not: heart"),
    ],
)
def test_patterns_of_masks_must_make_sense(changes, what):
    with pytest.raises(ValueError, match=what):
        masks(**changes)
