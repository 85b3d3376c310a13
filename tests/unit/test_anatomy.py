"""What speaks against a label map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_scans import REAL, body, save

from nemesis.config import Preparation
from nemesis.data.anatomy import suspicions, unknown_numbers
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.phantom import make_subject
from nemesis.data.readers import read_labels, read_volume
from nemesis.datasets import BTCV_LABELS, ScanFiles
from nemesis.errors import NemesisError

SPACING = (5.0, 5.0, 5.0)
NUMBERS = {"liver": 1, "spleen": 2, "stomach": 3, "right kidney": 4, "left kidney": 5, "aorta": 6}


def drawn(**at):
    """A map (D, H, W) with a box of each organ at that place along H (left to right)."""
    labels = np.zeros((12, 40, 12), np.uint8)
    for organ, h in at.items():
        labels[4:7, h : h + 3, 4:7] = NUMBERS[organ.replace("_", " ")]
    return labels


def told(labels, numbers=NUMBERS, hu=None, spacing=SPACING):
    return suspicions("map", labels, np.zeros(labels.shape, np.int16) if hu is None else hu, spacing, numbers)


def test_organs_on_their_sides():
    assert told(drawn(liver=30, spleen=5, stomach=10, right_kidney=28, left_kidney=8, aorta=18)) == []


def test_a_mirrored_map_is_told_once_with_everything_that_speaks_against_it():
    labels = drawn(liver=30, spleen=5, right_kidney=25, left_kidney=8)[:, ::-1]
    (fault,) = told(labels)
    assert "'liver' lies 125 mm to the left of 'spleen'" in fault.what
    assert "'right kidney' lies 85 mm to the left of 'left kidney'" in fault.what
    assert fault.where == "map" and "headers" in fault.remedy


def test_an_exchanged_pair_is_told_from_a_mirrored_scan():
    (fault,) = told(drawn(liver=30, spleen=5, right_kidney=8, left_kidney=28))
    assert "'right kidney' lies" in fault.what and "though 'liver' lies to the right of 'spleen'" in fault.what
    assert "label numbers of the pair" in fault.remedy


def test_what_is_near_the_middle_or_hardly_there_has_no_side():
    assert told(drawn(liver=18, spleen=20)) == []  # 10 mm
    labels = drawn(liver=30, spleen=5)[:, ::-1].copy()
    labels[labels == NUMBERS["spleen"]] = 0
    labels[5, 35, 5] = NUMBERS["spleen"]
    assert told(labels, spacing=(2.0, 5.0, 2.0)) == []  # a stray voxel
    assert told(drawn(liver=5)) == []  # nothing to compare with


@pytest.mark.parametrize(
    ("right", "left"),
    [("RightParotid", "LeftParotid"), ("kidney_right", "kidney_left"), ("Parotid_R", "Parotid_L")],
)
def test_sides_are_read_out_of_any_way_of_writing(right, left):
    numbers = {right: 4, left: 5, "a right": 7}
    assert told(drawn(right_kidney=28, left_kidney=8), numbers) == []
    (fault,) = told(drawn(right_kidney=8, left_kidney=28), numbers)
    assert f"'{right}' lies 100 mm to the left of '{left}'" in fault.what


def test_solid_organs_in_air():
    labels = drawn(liver=30, stomach=10, aorta=18)
    hu = np.full(labels.shape, 40, np.int16)
    hu[:, 25:] = -1000
    (fault,) = told(labels, hu=hu)
    assert "100% of 'liver' is air" in fault.what and "aorta" not in fault.what
    hu[:, 25:], hu[:, :15] = 40, -1000
    assert told(labels, hu=hu) == []  # a stomach full of air


def test_phantoms_are_right_and_their_mirror_images_are_not():
    subject = make_subject(0, 0, 8.0)
    assert suspicions("map", subject.labels, subject.hu, subject.spacing, BTCV_LABELS) == []
    assert suspicions("map", subject.labels[:, ::-1], subject.hu[:, ::-1], subject.spacing, BTCV_LABELS)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans here")
def test_no_false_alarm_on_real_scans_and_all_their_mirror_images_are_found():
    openkbp = json.loads((REAL / "openkbp" / "dataset.json").read_text())["labels"]
    numbers = {organ: number for organ, number in openkbp.items() if number}
    files = [(path, REAL / "openkbp" / "labelsTr" / path.name.replace("_0000", ""), numbers)
             for path in sorted((REAL / "openkbp" / "imagesTr").iterdir())[::6]]  # fmt: skip
    files += [(path.parent / "image.nii.gz", path, BTCV_LABELS) for path in sorted(REAL.glob("ct/*/label*.nii.gz"))]
    found = []
    for scan, path, organs in files:
        volume = read_volume(scan)
        labels = read_labels(path, volume)
        assert suspicions(str(path), labels, volume.hu, volume.spacing, organs) == []
        found.append(bool(suspicions(str(path), labels[:, ::-1], volume.hu[:, ::-1], volume.spacing, organs)))
    assert np.mean(found) > 0.85  # the others have neither a pair nor liver and spleen


def test_numbers_of_no_organ_are_a_note():
    counts = np.array([900, 10, 0, 5, 1])
    assert unknown_numbers(counts, {"liver": 1, "aorta": 3, "spleen": 4}) == []
    (note,) = unknown_numbers(counts, {"liver": 1})
    assert note.endswith("that no organ of the dataset has: 3, 4")
    (note,) = unknown_numbers(np.ones(40), {"liver": 1})
    assert note.endswith("10, 11, …")


# --------------------------------------------------------------------------------------------------- through the gate


def cohort(root: Path, out: Path, accept=()):
    """Ingest two scans, one of them mirrored and with numbers of no organ; the gate."""
    dataset = ScanFiles(reader="files", name="ct", labels={"exhaustive": "{case}/label.nii.gz"}, label_numbers=NUMBERS)
    write_manifest(out / "manifest.json", dataset, list_cases(dataset, root), label_numbers(dataset, root))
    ingest(out / "manifest.json", root, out / "store", out / "verdicts.json", Preparation(), 8, 0)
    write_index([out / "verdicts.json"], out / "index.parquet", accept)
    return json.loads((out / "verdicts.json").read_text())["cases"]


@pytest.fixture
def raw(tmp_path):
    labels = np.zeros((20, 40, 16), np.uint8)
    labels[8:12, 28:32, 6:10], labels[8:12, 8:12, 6:10], labels[6, 20, 8] = 1, 2, 77
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    for seed, case in enumerate(("right", "mirrored")):
        save(tmp_path / "raw" / case / "image.nii.gz", body((20, 40, 16), seed), affine=affine)
        turned = labels[:, ::-1] if case == "mirrored" else labels
        save(tmp_path / "raw" / case / "label.nii.gz", np.ascontiguousarray(turned), affine=affine)
    return tmp_path / "raw"


def test_the_gate_stops_at_a_mirrored_scan_until_it_is_accepted(raw, tmp_path):
    with pytest.raises(NemesisError) as caught:
        cohort(raw, tmp_path / "out")
    (fault,) = caught.value.faults
    assert fault.where == str(raw / "mirrored" / "label.nii.gz") and "left and right look exchanged" in fault.what
    assert "`exclude: [ct/mirrored]`" in fault.remedy and "`accept: [ct/mirrored]`" in fault.remedy
    assert not (tmp_path / "out" / "index.parquet").exists()
    stored = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").iterdir()}
    verdicts = cohort(raw, tmp_path / "out", ["ct/mirrored"])  # what was accepted is not read again
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").iterdir()} == stored
    assert (tmp_path / "out" / "index.parquet").exists()
    assert {v["case"]: len(v["suspicions"]) for v in verdicts} == {"right": 0, "mirrored": 1}
    assert all("no organ of the dataset has: 77" in v["notes"][-1] for v in verdicts)


def test_the_gate_stops_at_a_scan_that_a_dataset_holds_twice(raw, tmp_path):
    for name in ("image", "label"):
        (raw / "copy").mkdir(exist_ok=True)
        (raw / "copy" / f"{name}.nii.gz").write_bytes((raw / "right" / f"{name}.nii.gz").read_bytes())
    with pytest.raises(NemesisError) as caught:
        cohort(raw, tmp_path / "out", ["ct/mirrored"])
    (fault,) = caught.value.faults
    assert (fault.where, fault.what) == ("ct/right", "is the same scan as ct/copy: equal HU")
    assert "`exclude: [ct/right]`" in fault.remedy
