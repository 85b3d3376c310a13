"""Every layout of every card against its replica: found, listed, counted, ingested, voxel by voxel."""

import json
from pathlib import Path

import numpy as np
import pytest
import replicas

from nemesis.config import Preparation
from nemesis.data.cards import cards, resolve
from nemesis.data.cases import write_manifest
from nemesis.data.check import check
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.store import StoredVolume
from nemesis.datasets import BTCV_LABELS, CardDataset
from nemesis.errors import NemesisError

THIRTEEN = list(BTCV_LABELS)
FILES = {  # card, layout → its maker, labels' kind, organs
    ("btcv", "RawData/Training/img"): (replicas.btcv_raw, "exhaustive", THIRTEEN),
    ("btcv", "imagesTr/img0001"): (replicas.btcv_flat, "exhaustive", THIRTEEN),
    ("btcv", "imagesTr/<case>.nii.gz"): (replicas.btcv_plain, "exhaustive", THIRTEEN),
    ("btcv", "an nnU-Net folder"): (replicas.btcv_nnunet, "exhaustive", ["spleen", "right kidney", "oesophagus"]),
    ("synapse", "an nnU-Net folder"): (replicas.synapse, "exhaustive", ["spleen", "right kidney"]),
    ("msd_pancreas", "dataset.json"): (replicas.msd_pancreas, "exhaustive", ["pancreas", "pancreas tumour"]),
    ("totalsegmentator", "s0000/ct"): (replicas.totalsegmentator, "exhaustive", THIRTEEN),
    ("kits23", "case_00000"): (replicas.kits23, "exhaustive", ["kidney", "kidney tumour", "kidney cyst"]),
    ("luna16", "subset0/<series>"): (replicas.luna16, "none", []),
    ("tcia_covid19", "<scan>.nii.gz"): (replicas.covid19, "none", []),
}


def entry(card, **more):
    return CardDataset(reader="card", name=card, **more)


def ingested(dataset, root, out):
    """Case → (verdict, HU, labels) of the store."""
    write_manifest(out / "manifest.json", dataset, list_cases(dataset, root, keep=out), label_numbers(dataset, root))
    ingest(out / "manifest.json", root, out / "store", out / "verdicts.json", Preparation(), 16, 0)
    found = {}
    for verdict in json.loads((out / "verdicts.json").read_text())["cases"]:
        assert verdict["ok"], verdict["faults"]
        stem = out / "store" / verdict["stem"]
        paths = [Path(f"{stem}.{kind}.b2nd") for kind in ("hu", "labels")]
        found[verdict["case"]] = verdict, *(StoredVolume(path).whole() if path.is_file() else None for path in paths)
    return found


@pytest.mark.parametrize(("card", "layout"), FILES)
def test_layouts_of_files(card, layout, tmp_path):
    maker, kind, organs = FILES[card, layout]
    known = maker(tmp_path / "raw")
    dataset, found = resolve(entry(card), tmp_path / "raw")
    assert found.startswith(layout)
    cases = ingested(dataset, tmp_path / "raw", tmp_path / "out")
    assert cases.keys() == known.keys()
    for case, (hu, labels) in known.items():
        verdict, stored, drawn = cases[case]
        np.testing.assert_array_equal(stored, hu)
        assert (verdict["kind"], verdict["annotated"], verdict["patient"]) == (kind, organs, case)
        if labels is None:
            assert drawn is None
        else:
            np.testing.assert_array_equal(drawn, labels)


def test_openkbp_says_which_organs_were_drawn(tmp_path):
    replicas.openkbp(tmp_path / "raw")
    cases = ingested(resolve(entry("openkbp"), tmp_path / "raw")[0], tmp_path / "raw", tmp_path)
    assert {case: (verdict["kind"], verdict["annotated"]) for case, (verdict, *_) in cases.items()} == {
        "pt_1": ("partial", ["Brainstem"]),
        "pt_2": ("exhaustive", ["Brainstem", "SpinalCord"]),
    }


def test_of_flare23_only_what_occurs_was_drawn(tmp_path):
    known = replicas.flare23(tmp_path / "raw")
    cases = ingested(resolve(entry("flare23"), tmp_path / "raw")[0], tmp_path / "raw", tmp_path)
    assert {case: (verdict["kind"], verdict["annotated"]) for case, (verdict, *_) in cases.items()} == {
        "FLARE23_0000": ("partial", ["left kidney", "tumour"]),
        "FLARE23_0001": ("partial", ["right kidney"]),
        "FLARE23_0002": ("none", []),
    }
    for case, (hu, labels) in known.items():
        np.testing.assert_array_equal(cases[case][1], hu)
        assert labels is None or (cases[case][2] == labels).all()


@pytest.mark.parametrize(("card", "maker"), [("hnscc", replicas.hnscc), ("tcia_covid19", replicas.covid19_dicom)])
def test_layouts_of_dicom(card, maker, tmp_path):
    known = maker(tmp_path / "raw")
    dataset, found = resolve(entry(card), tmp_path / "raw")
    assert found.startswith("a tree of DICOM")
    by_patient = {}
    for case, (verdict, hu, labels) in ingested(dataset, tmp_path / "raw", tmp_path / "out").items():
        assert case.startswith(f"{verdict['patient']}-") and labels is None
        by_patient.setdefault(verdict["patient"], []).append(hu)
    assert by_patient.keys() == known.keys()
    for patient, scans in known.items():
        assert len(by_patient[patient]) == len(scans)
        assert all(any(np.array_equal(scan, hu) for hu in by_patient[patient]) for scan in scans)


def test_lidc_with_its_xml(tmp_path):
    known, nodule = replicas.lidc(tmp_path / "raw")
    cases = ingested(resolve(entry("lidc_idri"), tmp_path / "raw")[0], tmp_path / "raw", tmp_path)
    patients = {verdict["patient"]: (verdict, hu, labels) for verdict, hu, labels in cases.values()}
    for patient, (scan,) in known.items():
        verdict, hu, labels = patients[patient]
        np.testing.assert_array_equal(hu, scan)
        np.testing.assert_array_equal(labels, nodule if patient.endswith("1") else 0 * nodule)
        assert (verdict["kind"], verdict["annotated"]) == ("exhaustive", ["nodule"])


CHECKED = {
    "btcv": (replicas.btcv_raw, ["3 of 30 as published: 27 are missing", "labelled   3 of 30", "(3 exhaustive)", "liver 6"]),
    "msd_pancreas": (replicas.msd_pancreas, ["2 of 281", "pancreas tumour 2", "1 × test scans (imagesTs)"]),
    "hnscc": (replicas.hnscc, ["scans      3\n", "patients   2 of 627", "1 × PT series", "1 × RTSTRUCT series",
                               "1 × CT localiser series", "1 × files that are not DICOM (.csv)", "restricted"]),
    "lidc_idri": (replicas.lidc, ["scans      2 of 1018", "nodule 1", "1 × DX series",
                                  "1 × annotations of series that are not here",
                                  "1 × XML files that are no annotation of a CT series"]),
    "flare23": (replicas.flare23, ["scans      3 of 4000", "labelled   2 of 2200", "(2 partial)"]),
}  # fmt: skip


@pytest.mark.parametrize("card", CHECKED)
def test_the_check_says_what_was_found_against_what_is_published(card, tmp_path):
    maker, said = CHECKED[card]
    maker(tmp_path / "raw")
    lines, faults = check(card, tmp_path / "raw", {}, tmp_path / "keep", workers=0)
    assert not faults
    text = "\n".join([*lines, cards()[card].licence])
    for words in said:
        assert words in text


@pytest.mark.parametrize("card", cards())
def test_a_folder_with_another_layout_gets_one_clear_error(card, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/notes.txt").write_text("nothing")
    with pytest.raises(NemesisError, match="has no layout of") as error:
        check(card, tmp_path / "raw", {}, tmp_path / "keep")
    assert len(error.value.faults) == 1 and str(tmp_path / "raw") in str(error.value)
    assert all(layout in str(error.value) for layout in cards()[card].layouts)


def test_a_card_can_be_called_otherwise_and_its_keys_overridden(tmp_path):
    replicas.totalsegmentator(tmp_path)
    mine = CardDataset(reader="card", name="mine", card="TotalSegmentator", labels={}, expected=7)
    dataset, _ = resolve(mine, tmp_path)
    assert (dataset.name, dataset.expected, dataset.labels) == ("mine", 7, {})
    assert {case.kind for case in list_cases(dataset, tmp_path)} == {"none"}
    with pytest.raises(NemesisError, match="Did you mean 'labels'") as error:
        resolve(entry("totalsegmentator", lables={}), tmp_path)
    assert "card totalsegmentator" in str(error.value)
    with pytest.raises(NemesisError, match="Did you mean 'kits23'"):
        resolve(entry("kits32"), tmp_path)


def test_while_its_folder_is_not_there_a_card_stands_for_its_first_layout(tmp_path):
    dataset, layout = resolve(entry("BTCV"), tmp_path / "nowhere")
    assert (dataset.reader, dataset.expected, layout) == ("nnunet", 30, None)
    assert resolve(entry("hnscc"), None)[0].expected == 627  # patients, where the number of scans is not sure
