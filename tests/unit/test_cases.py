import json
import shutil

import pytest

from nemesis.data.cases import check_organs, read_manifest, write_manifest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.seen import fingerprint
from nemesis.datasets import NnunetFolder, PhantomCohort, ScanFiles
from nemesis.errors import NemesisError

ORGANS = {"liver": 1, "aorta": 2}


def put(root, *names, content=b"scan"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content + name.encode())


def files(**changes):
    labels = {"exhaustive": "{case}/label.nii.gz", "pseudo": "{case}/pseudo.nii.gz"}
    return ScanFiles(**{"reader": "files", "name": "ct", "labels": labels, "label_numbers": ORGANS} | changes)


def nnunet_folder(root, cases, **content):
    for case in cases:
        put(root, f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
    full = {"channel_names": {"0": "CT"}, "labels": {"background": 0} | ORGANS, "file_ending": ".nii.gz"} | content
    (root / "dataset.json").write_text(json.dumps(full))
    return NnunetFolder(reader="nnunet", name="kbp")


def faults(dataset, root, exclude=()):
    with pytest.raises(NemesisError) as caught:
        list_cases(dataset, root, exclude)
    return [str(fault) for fault in caught.value.faults]


def test_cases_of_files_with_their_kind_of_label(tmp_path):
    put(tmp_path, "b/image.nii.gz", "b/label.nii.gz", "a/image.nii.gz", "a/pseudo.nii.gz", "c/image.nii.gz", "README.md")
    put(tmp_path, ".hidden/image.nii.gz")
    cases = list_cases(files(), tmp_path)
    assert [(c.case, c.kind, c.label) for c in cases] == [
        ("a", "pseudo", "a/pseudo.nii.gz"),
        ("b", "exhaustive", "b/label.nii.gz"),
        ("c", "none", None),
    ]
    assert [c.label_fingerprint == "" for c in cases] == [False, False, True]


def test_a_file_belongs_to_the_most_specific_pattern(tmp_path):
    put(tmp_path, "a.nii.gz", "a_label.nii.gz", "b.nii.gz")
    cases = list_cases(files(image="./{case}.nii.gz", labels={"partial": "{case}_label.nii.gz"}), tmp_path)
    assert [(c.case, c.kind) for c in cases] == [("a", "partial"), ("b", "none")]


def test_every_fault_of_a_folder_is_told_at_once(tmp_path):
    put(tmp_path, "good/image.nii.gz", "two/image.nii.gz", "two/label.nii.gz", "two/pseudo.nii.gz", "lost/label.nii.gz")
    (tmp_path / "empty").mkdir()
    told = faults(files(), tmp_path)
    assert len(told) == 3
    for case in ("empty", "lost", "two"):
        assert any(f"exclude: [ct/{case}]" in fault and str(tmp_path / case) in fault for fault in told)
    cases = list_cases(files(labels={}), tmp_path, ["ct/empty", "ct/lost", "ct/two", "other/good"])
    assert [case.case for case in cases] == ["good"]


def test_an_excluded_case_must_exist(tmp_path):
    put(tmp_path, "patient_1/image.nii.gz")
    assert "Did you mean 'ct/patient_1'?" in faults(files(labels={}), tmp_path, ["ct/patient_l"])[0]
    assert "leaves no case" in faults(files(labels={}), tmp_path, ["ct/patient_1"])[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "no scan fits"),
        ({"image": "/somewhere/{case}.nii.gz"}, "leaves the root"),
        ({"image": "../{case}.nii.gz"}, "leaves the root"),
        ({"image": "{case}/label.nii.gz"}, "two patterns are the same"),
        ({"label_numbers": {"liver": 1, "aorta": 1}}, "must be different"),
        ({"label_numbers": {"liver": 0}}, "from 1 to 65535"),
    ],
)
def test_faults_of_a_whole_folder(tmp_path, changes, what):
    assert what in faults(files(**changes), tmp_path)[0]


def test_a_label_pattern_that_fits_nothing_is_not_taken_for_no_labels(tmp_path):
    put(tmp_path, "a/image.nii.gz")
    told = faults(files(labels={"exhaustive": "{case}/lable.nii.gz"}), tmp_path)
    assert len(told) == 1
    assert "no file fits the pattern '{case}/lable.nii.gz'" in told[0]


def test_missing_folder(tmp_path):
    assert "does not exist" in faults(files(), tmp_path / "nowhere")[0]
    (tmp_path / "file").touch()
    assert "not a folder" in faults(files(), tmp_path / "file")[0]
    assert "data_root" in faults(files(), None)[0]


def test_nnunet_without_a_list_of_drawn_structures_is_exhaustive(tmp_path):
    cases = list_cases(nnunet_folder(tmp_path, ["p2", "p1"]), tmp_path)
    assert [(c.case, c.kind, c.annotated) for c in cases] == [(p, "exhaustive", ("liver", "aorta")) for p in ("p1", "p2")]


def test_nnunet_partial_labels(tmp_path):
    drawn = {"p1": ["aorta"], "p2": ["aorta", "liver"], "p3": []}
    cases = list_cases(nnunet_folder(tmp_path, drawn, labelled_structures=drawn), tmp_path)
    assert [(c.kind, c.annotated) for c in cases] == [
        ("partial", ("aorta",)),
        ("exhaustive", ("liver", "aorta")),
        ("none", None),
    ]


def test_nnunet_faults_of_cases(tmp_path):
    drawn = {"p1": ["aorta"], "named": ["aorta"], "unlabelled": ["aorta"]}
    dataset = nnunet_folder(tmp_path, ["p1", "unsaid", "unlabelled"], labelled_structures=drawn)
    (tmp_path / "labelsTr/unlabelled.nii.gz").unlink()
    put(tmp_path, "labelsTr/orphan.nii.gz")
    told = faults(dataset, tmp_path)
    assert len(told) == 4
    for case, what in {"named": "scan is missing", "orphan": "scan is missing", "unlabelled": "label map is missing",
                       "unsaid": "which organs were drawn"}.items():  # fmt: skip
        assert any(case in fault and what in fault for fault in told), (case, told)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"labels": None}, "no mapping `labels`"),
        ({"labels": {"background": 0}}, "names no organ"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "gives 'whole' something else than a whole number. Give"),
        ({"labels": {"background": "0", "liver": "1"}}, "gives 'background' something else than a whole number"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "two numbers of its `labels` have one name"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "ignore label"),
        ({"channel_names": {"0": "T2"}}, "not one of CT"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "not one of CT"),
        ({"file_ending": ".png"}, "file_ending"),
        ({"labelled_structures": {"p1": ["heart"]}}, "heart"),
        ({"labelled_structures": ["p1"]}, "not a mapping"),
    ],
)
def test_broken_dataset_json(tmp_path, content, what):
    told = faults(nnunet_folder(tmp_path, ["p1"], **content), tmp_path)
    assert len(told) == 1
    assert what in told[0]


def test_unreadable_dataset_json_and_empty_nnunet_folder(tmp_path):
    dataset = nnunet_folder(tmp_path, ["p1"])
    shutil.rmtree(tmp_path / "imagesTr")
    assert "holds no scan" in faults(dataset, tmp_path)[0]
    (tmp_path / "dataset.json").write_text("{")
    assert "cannot be read" in faults(dataset, tmp_path)[0]
    (tmp_path / "dataset.json").unlink()
    assert "is missing" in faults(dataset, tmp_path)[0]


def test_labels_as_written_before_nnunet_v2(tmp_path):
    dataset = nnunet_folder(tmp_path, ["p1"], labels={"0": "background", "1": "liver", "2": "aorta"})
    assert label_numbers(dataset, tmp_path) == ORGANS
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors of Windows write UTF-8
    assert label_numbers(dataset, tmp_path) == ORGANS


def test_phantoms_do_not_depend_on_the_size_of_the_cohort():
    few, many = (list_cases(PhantomCohort(reader="phantom", subjects=n), None) for n in (2, 5))
    assert few == many[:2]
    assert len({case.fingerprint for case in many}) == 5
    other = list_cases(PhantomCohort(reader="phantom", subjects=2, seed=1), None)
    assert other[0].fingerprint != few[0].fingerprint
    assert label_numbers(PhantomCohort(reader="phantom"), None)["liver"] == 6


def test_the_fingerprint_sees_every_change_of_a_small_file_and_the_ends_of_a_large_one(tmp_path):
    path = tmp_path / "scan"
    for size in (10, 3_000_000):
        content = bytearray(b"x" * size)
        path.write_bytes(content)
        marks = {fingerprint(path)}
        for position in (0, size - 1):
            changed = content.copy()
            changed[position] ^= 1
            path.write_bytes(changed)
            marks.add(fingerprint(path))
        path.write_bytes(content + b"x")
        marks.add(fingerprint(path))
        assert len(marks) == 4


def test_a_redrawn_label_map_leaves_the_scan_its_fingerprint(tmp_path):
    put(tmp_path, "a/image.nii.gz", "a/label.nii.gz")
    dataset = files(labels={"exhaustive": "{case}/label.nii.gz"})
    before = list_cases(dataset, tmp_path)[0]
    put(tmp_path, "a/label.nii.gz", content=b"other")
    after = list_cases(dataset, tmp_path)[0]
    assert before.fingerprint == after.fingerprint
    assert before.label_fingerprint != after.label_fingerprint


def test_the_manifest_comes_back_and_is_only_rewritten_when_it_changes(tmp_path):
    dataset = nnunet_folder(tmp_path, ["p1", "p2"], labelled_structures={"p1": ["aorta"], "p2": []})
    cases, path = list_cases(dataset, tmp_path), tmp_path / "out" / "kbp.json"
    write_manifest(path, dataset, cases, ORGANS)
    first = path.stat().st_mtime_ns, path.stat().st_ino
    write_manifest(path, dataset.model_copy(update={"root": "elsewhere"}), cases, ORGANS)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == first
    manifest = read_manifest(path)
    assert (manifest.dataset, manifest.cases, manifest.label_numbers) == (dataset, cases, ORGANS)
    write_manifest(path, dataset, cases[:1], ORGANS)
    assert read_manifest(path).cases == cases[:1]


def test_organs_must_be_known_to_some_dataset():
    check_organs(["liver", "aorta"], {"a": {"liver": 1}, "b": {"aorta": 1}})
    with pytest.raises(NemesisError, match="Did you mean 'liver'") as caught:
        check_organs(["livr", "brain"], {"a": {"liver": 1}})
    assert len(caught.value.faults) == 2
