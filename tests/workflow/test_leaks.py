"""A scan that both pools hold stops the workflow before anything is trained, unless that is what the user wants."""

import json

import nibabel
import numpy as np
import pytest

from nemesis.data.phantom import make_subject

pytestmark = pytest.mark.workflow
OWN, OTHER = ("a1", "a2", "a3", "a4"), ("b1", "b2")


def save(path, hu, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing[1], spacing[2], spacing[0], 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(hu.transpose(1, 2, 0)), affine), path)


@pytest.fixture
def place(fresh):
    """Labelled scans to evaluate on, and others to pretrain on, of which one is a piece of an evaluation scan, clipped."""
    scans = fresh.folder / "scans"
    for number, case in enumerate((*OWN, *OTHER)):
        subject = make_subject(1, number, 8.0)
        folder = scans / ("evaluated" if case in OWN else "pretrained") / case
        save(folder / "image.nii.gz", subject.hu, subject.spacing)
        if case in OWN:
            save(folder / "label.nii.gz", subject.labels, subject.spacing)
            if case == "a2":
                piece = np.clip(subject.hu[:, :, : subject.hu.shape[2] * 2 // 3], -175, 250)
                save(scans / "pretrained" / "hidden" / "image.nii.gz", piece, subject.spacing)
    write(fresh)
    return fresh


def write(place, transductive=False, **top):
    datasets = [
        {"reader": "files", "name": "evaluated", "root": "scans/evaluated", "labels": {"exhaustive": "{case}/label.nii.gz"}},
        {"reader": "files", "name": "pretrained", "root": "scans/pretrained"},
    ]
    pools = {"evaluation": {"evaluated": "all"}, "pretraining": {"pretrained": "all"}, "transductive": transductive}
    place.write_config(datasets=datasets, pools=pools, organs=["liver"], **top)


def test_a_hidden_scan_stops_the_workflow_and_each_remedy_lets_it_go_on(place):
    done = place.snakemake("pretrain_all")
    assert done.rc != 0
    assert done.text.count("pretrained/hidden: is pretrained on and would be evaluated on, as evaluated/a2") == 1, done.text
    assert "`exclude: [pretrained/hidden]`" in done.text and "pools.transductive: true" in done.text
    assert "Traceback" not in done.text and not (place.results / "runs").exists()

    write(place, exclude=["pretrained/hidden"])
    done = place.snakemake("ingest_all")
    assert done.rc == 0, done.text
    audit = place.results / "tiny" / "data" / "audit.json"
    assert json.loads(audit.read_text())["pairs"] == []

    write(place, transductive=True)
    done = place.snakemake("pretrain_all")
    assert done.rc == 0, done.text
    (pair,) = json.loads(audit.read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["why"]) == ("pretrained/hidden", "evaluated/a2", ["signature"])
    assert (place.results / "runs").exists(), done.text
    assert sorted(place.plan("pretrain_all").jobs) == []

    write(place, transductive=True, accept=["evaluated/a1"])  # an audit that is made again repeats no training
    assert set(place.plan("pretrain_all").jobs) == {"check_cohort", "audit_pools", "pretrain_all"}


def test_a_test_patient_who_would_train_under_another_name_stops_the_workflow(place):
    """Two names in the evaluation pool would put one scan among the training and the test patients of a fold."""
    subject, folder = make_subject(1, OWN.index("a3"), 8.0), place.folder / "scans" / "evaluated" / "somebody"
    piece = slice(0, subject.hu.shape[2] * 2 // 3)
    save(folder / "image.nii.gz", np.clip(subject.hu[:, :, piece], -175, 250), subject.spacing)
    save(folder / "label.nii.gz", subject.labels[:, :, piece], subject.spacing)
    write(place, exclude=["pretrained/hidden"], transductive=True)  # which would not excuse it
    done = place.snakemake("pretrain_all")
    assert done.rc != 0 and "Traceback" not in done.text
    told = "evaluated/a3: would be another evaluation patient's, too, as evaluated/somebody (the same acquisition by signature"
    assert done.text.count(told) == 1, done.text
    assert "`exclude: [evaluated/somebody]`, for it leaks across folds" in done.text
    assert not (place.results / "runs").exists()
