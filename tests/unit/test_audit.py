"""Planted duplicates are found under whatever name, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_experiment import make_experiment
from small_scans import save

from nemesis.config import Preparation
from nemesis.data.audit import Known, audit, find_pairs, tells_a_patient
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.phantom import make_subject
from nemesis.data.pools import Member, read_pool, write_pool
from nemesis.data.readers import Volume, resample
from nemesis.data.signature import signature
from nemesis.datasets import ScanFiles
from nemesis.errors import NemesisError
from nemesis.experiment import plan
from nemesis.report.collect import collect
from nemesis.report.tables import read_measured, tables

SUBJECTS = 6
DISGUISED = ("copy", "resampled", "cropped")  # of subjects 0, 1 and 2: in another dataset, under names of their own


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Phantoms as `own`, and in `other` three of them in disguise beside one of its own: index, and cases by name."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    subjects = [make_subject(5, index, 6.0) for index in range(SUBJECTS + 1)]
    scans = {f"own/p{n}": Volume(s.hu, s.spacing, s.affine) for n, s in enumerate(subjects[:SUBJECTS])}
    copy, moved, part = (scans[f"own/p{n}"] for n in range(3))
    scans["other/copy"] = copy
    scans["other/resampled"] = resample(moved, None, (4.0, 5.0, 3.0))[0]
    half = Volume(np.clip(part.hu[part.hu.shape[0] // 2 :], -175, 250).astype(np.int16), part.spacing, part.affine)
    scans["other/cropped"] = resample(half, None, (5.0, 4.0, 4.0))[0]
    last = subjects[SUBJECTS]
    scans["other/alone"] = Volume(last.hu, last.spacing, last.affine)
    for name, scan in scans.items():
        mm = scan.spacing
        save(root / f"{name}.nii.gz", scan.hu, "LPS", np.diag([mm[1], mm[2], mm[0], 1.0]))
    cases, verdicts = {}, []
    for name in ("own", "other"):
        dataset = ScanFiles(reader="files", name=name, image="{case}.nii.gz")
        listed = list_cases(dataset, root / name)
        cases |= {case.name: case for case in listed}
        write_manifest(out / f"{name}.json", dataset, listed, label_numbers(dataset, root / name))
        verdicts.append(out / f"{name}.verdicts.json")
        ingest(out / f"{name}.json", root / name, out / name, verdicts[-1], Preparation(), 16, 0)
    write_index(verdicts, out / "index.parquet")
    return out / "index.parquet", cases


def specification(cohort, folder, pretraining, evaluation, **more):
    index, cases = cohort
    for name, pool in (("pretraining", pretraining), ("evaluation", evaluation)):
        write_pool(folder / f"{name}.json", [cases[case] for case in pool], labels=False)
    files = {name: str(folder / f"{name}.json") for name in ("pretraining", "evaluation")}
    spec = {"index": str(index), **files, "out": str(folder / "audit.json"), "transductive": False, "accept": [], "version": 1}
    return spec | more


OTHERS = [f"other/{name}" for name in (*DISGUISED, "alone")]
OWN = [f"own/p{n}" for n in range(SUBJECTS)]


def test_every_disguise_is_found_and_nothing_else(cohort, tmp_path):
    with pytest.raises(NemesisError) as caught:
        audit(specification(cohort, tmp_path, OTHERS, OWN))
    *faults, together = caught.value.faults
    assert not (tmp_path / "audit.json").exists()
    assert {fault.where: fault.what.split(" (")[0] for fault in faults} == {
        f"other/{name}": f"is pretrained on and would be evaluated on, as own/p{n}" for n, name in enumerate(DISGUISED)
    }
    assert "equal HU; the same acquisition by signature" in next(f.what for f in faults if f.where == "other/copy")
    assert all("equal HU" not in f.what for f in faults if f.where != "other/copy")
    assert all(f"`exclude: [{f.where}]`" in f.remedy and "`pools.transductive: true`" in f.remedy for f in faults)
    assert together.remedy.endswith("`exclude: [other/copy, other/cropped, other/resampled]`.")


def test_it_does_not_matter_which_pool_holds_the_disguise(cohort, tmp_path):
    with pytest.raises(NemesisError) as caught:
        audit(specification(cohort, tmp_path, OWN, OTHERS))
    assert [fault.where for fault in caught.value.faults] == ["own/p0", "own/p1", "own/p2", "pools"]


def test_clean_pools_say_so(cohort, tmp_path):
    audit(specification(cohort, tmp_path, OWN[3:], OTHERS))
    found = json.loads((tmp_path / "audit.json").read_text())
    nothing = {"pairs": [], "accepted": [], "not_compared": []}
    assert found == {"transductive": False, "scans": {"pretraining": 3, "evaluation": 4}} | nothing


def test_a_transductive_experiment_goes_on_and_tells_what_is_shared(cohort, tmp_path):
    audit(specification(cohort, tmp_path, [*OWN[:3], OTHERS[3]], OTHERS, transductive=True))
    pairs = {(p["first"], p["second"]): p for p in json.loads((tmp_path / "audit.json").read_text())["pairs"]}
    assert set(pairs) == {*zip(OWN[:3], OTHERS[:3], strict=True), (OTHERS[3], OTHERS[3])}
    assert pairs[OWN[0], OTHERS[0]]["why"] == ["content", "signature"]
    assert pairs[OWN[1], OTHERS[1]]["why"] == pairs[OWN[2], OTHERS[2]]["why"] == ["signature"]
    assert pairs[OTHERS[3], OTHERS[3]]["why"] == ["patient", "content", "signature"]
    assert all(p["pools"] == "pretraining, evaluation" and p["score"] > 15 for p in pairs.values())


@pytest.mark.parametrize("transductive", [False, True])
def test_evaluation_patients_who_are_one_would_leak_across_folds(cohort, tmp_path, transductive):
    with pytest.raises(NemesisError) as caught:
        audit(specification(cohort, tmp_path, OWN[4:], [*OWN[1:4], "other/resampled"], transductive=transductive))
    (fault,) = caught.value.faults
    assert fault.where == "own/p1" and "another evaluation patient's, too, as other/resampled" in fault.what
    assert "`exclude: [other/resampled]`" in fault.remedy and "transductive" not in fault.remedy


def test_a_test_patient_who_was_pretrained_on_under_another_name_is_told_beside_every_result(cohort, tmp_path):
    """From the scans to the printed tables: whoever goes on all the same (transductive) finds it in the leakage column."""
    spec = make_experiment(tmp_path, ("own", "b")) | {"audit": str(tmp_path / "found.json"), "transductive": 1}
    pools = specification(cohort, tmp_path, OTHERS[:1], OWN[:3], transductive=True, out=spec["audit"])
    audit(pools)
    collect(spec, tmp_path / "collected")
    main = next(table for table in tables(read_measured(spec, tmp_path / "collected")) if table.name == "main")
    told = dict(zip(main.data["method"], main.data["leakage"], strict=True))
    assert told["NEMESIS"] == told["Auto_encoder & co"] == "transductive: own; clean: b"
    assert told["Random ViT"] == "clean"  # it saw no scan
    assert "TRANSDUCTIVE: encoders were pretrained on scans of 1 evaluation patient, too" in main.caption


def test_a_signature_that_is_gone_is_told_with_what_to_do(cohort, tmp_path):
    index, cases = cohort
    spec = specification((tmp_path / "index.parquet", cases), tmp_path, OWN[3:], OTHERS)
    (tmp_path / "index.parquet").write_bytes(index.read_bytes())  # its store is not there
    with pytest.raises(NemesisError, match=r"signature\.npy: cannot be read .*--forcerun ingest_scans"):
        audit(spec)


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_signature_that_is_damaged_or_something_else_is_told(tmp_path, content):
    if content is None:
        np.save(tmp_path / "a.npy", np.zeros((9, 3)))
    else:
        (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(NemesisError, match=r"a\.npy: cannot be read .*Delete it.*--forcerun ingest_scans"):
        find_pairs([], [member("a", "1")], {"a/1": Known("", tmp_path / "a.npy")})


# ------------------------------------------------------------------------------------------------------------- by name


def member(dataset, case, patient=None):
    return Member(dataset, case, patient or case, "f", None)


@pytest.fixture
def blank(tmp_path):
    """Scans of which nothing but their names is alike: each has a hash of its own and no key point."""
    np.save(tmp_path / "none.npy", signature(np.zeros((9, 9, 9), np.int16), (1.0, 1.0, 1.0)))

    def known(*members):
        return {f"{m.dataset}/{m.case}": Known(f"{m.dataset}/{m.case}", tmp_path / "none.npy") for m in members}

    return known


def test_one_patient_of_two_datasets(blank):
    lidc, luna, other = member("lidc", "a", "LIDC-IDRI-0314"), member("luna", "b", "LIDC-IDRI-0314"), member("lidc", "c")
    found = find_pairs([lidc, other], [luna], blank(lidc, luna, other))
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.why, pair.score) == ("lidc/a", "luna/b", ["patient"], None)
    assert found.not_compared == ["lidc/a", "lidc/c", "luna/b"]


def test_counters_are_nobodys_names(blank):
    members = [member(dataset, "case_0001") for dataset in ("kits", "flare")]
    assert find_pairs(members[:1], members[1:], blank(*members)).pairs == []


def test_scans_of_one_evaluation_patient_are_no_pair(blank):
    members = [member("a", "1", "same"), member("a", "2", "same"), member("a", "3", "another")]
    assert find_pairs([], members, blank(*members)).pairs == []


def test_people_who_only_bear_one_name_can_be_accepted(cohort, tmp_path):
    spec = specification(cohort, tmp_path, OWN[3:5], OTHERS[3:])
    for name in ("pretraining", "evaluation"):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        content["cases"][0]["patient"] = "HOSPITAL-0001"
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_pool(tmp_path / "evaluation.json")[0].patient == "HOSPITAL-0001"
    with pytest.raises(NemesisError) as caught:
        audit(spec)
    (fault,) = caught.value.faults
    assert fault.where == "own/p3" and "`accept: [own/p3]`" in fault.remedy and "same patient by name" in fault.what
    audit(spec | {"accept": ["own/p3"]})
    found = json.loads((tmp_path / "audit.json").read_text())
    (pair,) = found["accepted"]  # told all the same, but no verdict calls it shared
    assert pair["why"] == ["patient"] and not found["pairs"]


def test_acceptance_does_not_excuse_an_equal_scan(cohort, tmp_path):
    with pytest.raises(NemesisError, match="equal HU"):
        audit(specification(cohort, tmp_path, OTHERS[:1], OWN[:3], accept=["other/copy", "own/p0"]))


@pytest.mark.parametrize(
    ("name", "tells"),
    [
        ("LIDC-IDRI-0314", True), ("HNSCC-01-0001", True), ("1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031", True),
        ("crlm_1004", True), ("amos_0001", True), ("9f86d081884c", True), ("20231107", True),
        ("0001", False), ("case_00001", False), ("pt_1", False), ("img0035", False), ("s0314", False), ("volume-7", False),
        ("lung_001", False), ("Patient 12", False), ("CT_train_1001", False), ("p3", False),
    ],
)  # fmt: skip
def test_which_names_tell_a_patient(name, tells):
    assert tells_a_patient(name) == tells


# ------------------------------------------------------------------------------------------------------- from the plan


@pytest.fixture
def planned(tmp_path):
    def run(**top):
        raw = {"experiment": "t", "datasets": [{"reader": "phantom", "subjects": 8}], "superpatch": 32, "probe": {"folds": 3}}
        raw |= {"pools": {"evaluation": 3}, "methods": ["random_vit", "ae"]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw | top))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results")

    return run


def test_what_the_plan_tells_the_audit_and_the_report(planned):
    experiment = planned(accept=["phantom/0003"])
    spec = experiment.audit_spec()
    assert (spec["transductive"], spec["accept"]) == (False, ["phantom/0003"])
    assert [len(read_pool(Path(spec[name]))) for name in ("pretraining", "evaluation")] == [5, 3]
    report = experiment.report_spec()
    assert report["audit"] == spec["out"] and report["transductive"] == 0
    assert [run["trained_on"] for run in report["runs"]] == [None, None]  # none of them starts from published weights


def test_pools_may_share_scans_only_where_they_do_by_the_plan(planned):
    pools = {"evaluation": 3, "transductive": True}
    assert planned(pools=pools).audit_spec()["transductive"]
    assert not planned(pools=pools | {"transductive": "if_needed"}).audit_spec()["transductive"]  # others are left
    everyone = planned(pools={"evaluation": 8, "transductive": "if_needed"})
    assert everyone.audit_spec()["transductive"] and everyone.report_spec()["transductive"] == 8


def test_accepted_cases_must_exist(planned):
    with pytest.raises(NemesisError) as caught:
        planned(accept=["phantom/0030", "nowhere/0003", "0003"])
    assert [str(fault).split(". ")[0] for fault in caught.value.faults] == [
        "accept: there is no case 'phantom/0030'", "accept: there is no case 'nowhere/0003'", "accept: there is no case '0003'",
    ]  # fmt: skip
    assert "Did you mean 'phantom/000" in caught.value.faults[0].remedy


def test_what_the_page_shows_and_what_was_accepted_change_no_run(planned):
    ids = [run.id for run in planned().runs]
    assert [run.id for run in planned(accept=["phantom/0003"], quality_every=2).runs] == ids
    assert planned(quality_every=2).report_spec() == planned().report_spec()
