"""Trees of DICOM: whose a series is, what is passed over and said, what is a fault, what is not read again."""

import os
import shutil
import stat

import numpy as np
import pytest
from replicas import of
from scans import save_dicom
from small_scans import body

from nemesis.data import seen
from nemesis.data.cases import write_manifest
from nemesis.data.listings import dicom, list_cases, survey
from nemesis.data.readers import read_volume
from nemesis.datasets import DicomTree
from nemesis.errors import NemesisError

SMALL = (9, 8, 8)


def tree(**more):
    return DicomTree(reader="dicom", name="ct", **more)


def series(root, uid="1.1", patient="DOE-1", seed=0, **more):
    change = more.pop("change", of(patient, study=f"{uid}.9"))
    return save_dicom(root / f"export/{uid}", body(SMALL, seed), series=uid, change=change, **more)


def test_patients_are_called_by_a_salted_hash_and_their_series_are_cases_of_theirs(tmp_path):
    series(tmp_path / "raw", "1.1"), series(tmp_path / "raw", "1.2", seed=1), series(tmp_path / "raw", "1.3", "DOE-2")
    cases = list_cases(tree(salt="my own salt"), tmp_path / "raw")
    assert [case.series for case in sorted(cases, key=lambda case: case.image)] == ["1.1", "1.2", "1.3"]
    patients = {case.series: case.patient for case in cases}
    assert patients["1.1"] == patients["1.2"] != patients["1.3"]
    assert all(len(patient) == 12 and int(patient, 16) >= 0 for patient in patients.values())
    assert all(case.case.startswith(f"{case.patient}-") for case in cases) and len({case.case for case in cases}) == 3
    again = list_cases(tree(salt="my own salt"), tmp_path / "raw")
    other = list_cases(tree(salt="another salt"), tmp_path / "raw")
    assert cases == again and not {case.patient for case in cases} & {case.patient for case in other}


def test_a_random_salt_is_kept_for_its_owner_and_identifiers_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "SETTLED", -1.0)
    series(tmp_path / "raw", patient="SECRET-7")
    keep = tmp_path / "results/data"
    first = list_cases(tree(), tmp_path / "raw", keep=keep)
    assert list_cases(tree(), tmp_path / "raw", keep=keep) == first
    assert stat.S_IMODE((keep / "salt").stat().st_mode) == 0o600 and len((keep / "salt").read_text()) == 32
    write_manifest(keep / "manifest.json", tree(salt="my own salt"), first, {})
    for path in keep.iterdir():
        assert b"SECRET" not in path.read_bytes() and b"my own salt" not in path.read_bytes()
    (keep / "salt").unlink()
    assert list_cases(tree(), tmp_path / "raw", keep=keep)[0].patient != first[0].patient
    assert list_cases(tree(), tmp_path / "raw")[0].patient != list_cases(tree(), tmp_path / "raw")[0].patient


def test_a_salt_that_cannot_be_kept_is_a_fault(tmp_path):
    series(tmp_path / "raw")
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(NemesisError, match="Set `salt`"):
        list_cases(tree(), tmp_path / "raw", keep=tmp_path / "results")


def test_public_identifiers_must_be_harmless(tmp_path):
    series(tmp_path / "raw", patient="LIDC-IDRI-0001")
    (case,) = list_cases(tree(public_identifiers=True), tmp_path / "raw")
    assert case.patient == "LIDC-IDRI-0001"
    series(tmp_path / "raw", "1.2", patient="../../Jane Doe")
    with pytest.raises(NemesisError, match="public_identifiers: false") as error:
        list_cases(tree(public_identifiers=True), tmp_path / "raw")
    assert "Jane" not in str(error.value)
    assert len(list_cases(tree(), tmp_path / "raw")) == 2


def test_what_is_no_ct_volume_is_passed_over_and_said(tmp_path, caplog):
    raw = tmp_path / "raw"
    series(raw)
    for uid, change in {
        "2.1": of("DOE-1", "PT"), "2.2": of("DOE-1", "SEG"), "2.3": of("DOE-1", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
        "2.4": of("DOE-1", sop="1.2.840.10008.5.1.4.1.1.7"), "2.5": of("DOE-1", image_type=("DERIVED", "SECONDARY", "MIP")),
        "2.6": of("DOE-1", sop="1.2.840.10008.5.1.4.1.1.88.67"),
        "2.7": lambda n, dataset: of("DOE-1")(n, dataset) if n < 4 else None,
    }.items():  # fmt: skip
        series(raw, uid, change=change)
    (raw / "export/notes.pdf").write_bytes(b"%PDF")
    (raw / "export/.hidden").write_bytes(b"hidden")
    os.symlink(raw / "export", raw / "again")
    (case,) = list_cases(tree(), raw)
    assert case.series == "1.1"
    for said in (
        "1 × PT series", "1 × SEG series", "1 × CT localiser series", "2 × CT screen capture series",
        "1 × CT without images series", "1 × CT series of fewer than 8 slices",
        "1 × folders that are links", "1 × files that are not DICOM (.pdf)",
    ):  # fmt: skip
        assert said in caplog.text
    assert "DOE" not in caplog.text


def test_a_tree_without_ct_says_what_is_there(tmp_path):
    series(tmp_path, change=of("DOE-1", "MR"))
    with pytest.raises(NemesisError, match=r"holds no CT volume in DICOM \(passed over: 1 × MR series"):
        list_cases(tree(), tmp_path)


def emptied(*names):
    def change(n, dataset):
        dataset = of("DOE-1")(n, dataset)
        for name in names:
            setattr(dataset, name, "")
        return dataset

    return change


def test_where_uids_were_emptied_folders_and_studies_stand_for_them_aloud(tmp_path, caplog):
    uids = ("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
    for n, folder in enumerate("ab"):
        save_dicom(tmp_path / folder, body(SMALL, n), change=lambda k, dataset: dataset)
        for path in (tmp_path / folder).iterdir():
            change_in_place(path, *uids)
    cases = list_cases(tree(salt="my own salt"), tmp_path)
    assert [case.series for case in cases] == ["", ""] and len({case.patient for case in cases}) == 2
    assert "2 × CT series without PatientID" in caplog.text and "2 × CT series without SeriesInstanceUID" in caplog.text
    assert len({case.fingerprint for case in cases}) == 2
    for n, case in enumerate(sorted(cases, key=lambda case: case.image)):
        np.testing.assert_array_equal(read_volume(tmp_path / case.image, case.series, tmp_path).hu, body(SMALL, n))


def change_in_place(path, *emptied_names, **values):
    from pydicom import dcmread

    dataset = dcmread(path)
    for name in emptied_names:
        setattr(dataset, name, "")
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_without_a_patient_a_study_is_one(tmp_path):
    series(tmp_path, "1.1", change=emptied("PatientID")), series(tmp_path, "1.2", change=emptied("PatientID"))
    series(
        tmp_path, "1.3", change=lambda n, dataset: setattr(emptied("PatientID")(n, dataset), "StudyInstanceUID", "7") or dataset
    )
    patients = {case.series: case.patient for case in list_cases(tree(salt="my own salt"), tmp_path)}
    assert patients["1.1"] == patients["1.2"] != patients["1.3"]


def test_faults_of_a_tree_are_told_at_once(tmp_path):
    good, torn = series(tmp_path, "1.1"), series(tmp_path, "1.2")
    mixed, spread = series(tmp_path, "1.3"), series(tmp_path, "1.4")
    path = torn / "1-003.dcm"
    path.write_bytes(path.read_bytes()[:200])
    change_in_place(mixed / "1-002.dcm", PatientID="SOMEBODY-ELSE")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(spread / "1-001.dcm", tmp_path / "elsewhere/1-001.dcm")
    os.symlink("/etc/passwd", good / "1-010.dcm")
    os.mkfifo(good / "1-011.dcm")
    listing = survey(tree(), tmp_path)
    told = {fault.where.removeprefix(f"{tmp_path}/"): f"{fault.what} {fault.remedy}" for fault in listing.faults}
    assert "cannot be read as DICOM" in told["export/1.2/1-003.dcm"]
    assert "several PatientIDs" in told["export/1.3"] and "SOMEBODY" not in str(told)
    assert "leads out of its folder" in told["export/1.1/1-010.dcm"] and "no regular file" in told["export/1.1/1-011.dcm"]
    spread_fault = told["elsewhere"]
    assert "several folders" in spread_fault and "exclude: [ct/" in spread_fault
    assert len(told) == 5


def test_a_folder_full_of_one_fault_is_one_fault(tmp_path):
    folder = series(tmp_path / "set", "1.1")
    for path in list(folder.iterdir()):
        os.symlink(shutil.move(path, tmp_path / path.name), path)
    (fault,) = survey(tree(), tmp_path / "set").faults
    assert fault.where.endswith("1-001.dcm")
    assert (
        fault.what
        == f"is a link that leads out of its folder (and {len(list(folder.iterdir())) - 1} more of its folder likewise)"
    )


def test_a_faulty_series_can_be_excluded(tmp_path):
    series(tmp_path, "1.1")
    spread = series(tmp_path, "1.2")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(spread / "1-001.dcm", tmp_path / "elsewhere/1-001.dcm")
    dataset = tree(salt="my own salt")
    (fault,) = survey(dataset, tmp_path).faults
    name = fault.remedy.split("exclude: [")[1].split("]")[0]
    (case,) = list_cases(dataset, tmp_path, [name])
    assert case.series == "1.1"


def test_headers_of_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "SETTLED", -1.0)
    raw, keep, read = tmp_path / "raw", tmp_path / "keep", []
    one, _ = series(raw, "1.1"), series(raw, "1.2")
    original = dicom.read_header
    monkeypatch.setattr(dicom, "read_header", lambda path: read.append(path) or original(path))
    first = list_cases(tree(), raw, keep=keep)
    assert len(read) == 18
    assert list_cases(tree(), raw, keep=keep) == first and len(read) == 18
    path = one / "1-004.dcm"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one pixel
    path.write_bytes(content)
    second = list_cases(tree(), raw, keep=keep)
    assert read[18:] == [path]
    path.unlink()
    marks = [{case.series: case.fingerprint for case in cases} for cases in (first, second, list_cases(tree(), raw, keep=keep))]
    assert len(read) == 19
    assert len({mark["1.1"] for mark in marks}) == 3 and len({mark["1.2"] for mark in marks}) == 1
    list_cases(tree(salt="another salt"), raw, keep=keep)
    assert len(read) == 19 + 17  # patients are called otherwise


def test_a_case_changes_its_fingerprint_neither_by_its_folder_nor_by_its_neighbours(tmp_path):
    series(tmp_path / "one", "1.1")
    series(tmp_path / "two", "1.2")
    shutil.copytree(tmp_path / "one/export/1.1", tmp_path / "two/deeper/1.1")
    known = {case.series: case for case in list_cases(tree(salt="my own salt"), tmp_path / "two")}
    (case,) = list_cases(tree(salt="my own salt"), tmp_path / "one")
    assert (known["1.1"].case, known["1.1"].fingerprint) == (case.case, case.fingerprint)


def test_no_warning_of_a_library_says_what_a_header_says(tmp_path, recwarn, caplog):
    folder = series(tmp_path, patient="JANE-DOE" * 10)  # longer than DICOM allows
    path = folder / "1-003.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.1.9\0", b"JANE\xff\0"))
    recwarn.clear()
    caplog.clear()
    survey(tree(), tmp_path)
    assert not recwarn.list and not caplog.records
