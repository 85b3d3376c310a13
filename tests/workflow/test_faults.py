"""Faulty input: everything that is wrong is told at once, by file, with the remedy, before any training."""

import json

import nibabel
import numpy as np
import pytest
from places import CONFIG, SIZE

pytestmark = pytest.mark.workflow
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (24, 24, 24)


def scan(path, seed=0, hu=50):
    """A box of noisy soft tissue in air, with lumps of its own: boxes that only noise tells apart are one for the audit."""
    random = np.random.default_rng(seed)
    volume = np.full(SHAPE, -1000, np.int16)
    lumps = random.normal(hu, 60, (3, 3, 3)).repeat(6, 0).repeat(6, 1).repeat(6, 2)
    volume[3:21, 3:21, 3:21] = lumps + random.normal(0, 20, (18, 18, 18))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)


def organs(path, shape=SHAPE):
    labels = np.zeros(shape, np.uint8)
    labels[4:12, 4:12, 4:12] = 6
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), path)


@pytest.fixture
def folder(fresh):
    """Three faulty cases among four good ones."""
    root = fresh.folder / "scans"
    for n, case in enumerate(("good1", "good2", "good3", "good4", "cut", "shape", "notct")):
        scan(root / case / "image.nii.gz", n)
        organs(root / case / "label.nii.gz", (24, 24, 20) if case == "shape" else SHAPE)
    whole = (root / "cut" / "image.nii.gz").read_bytes()
    (root / "cut" / "image.nii.gz").write_bytes(whole[: len(whole) // 2])
    photograph = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    nibabel.save(nibabel.Nifti1Image(photograph, AFFINE), root / "notct" / "image.nii.gz")
    write(fresh)
    return root


def write(place, **top):
    dataset = {"reader": "files", "name": "mine", "root": "scans", "labels": {"exhaustive": "{case}/label.nii.gz"}}
    place.write_config(datasets=[dataset], pools={"evaluation": 3}, organs=["liver"], **top)


def stamps(place):
    return {p.name: p.stat().st_mtime_ns for p in (place.results / "data").rglob("good*")}


def test_the_gate_names_every_fault_and_nothing_is_trained(folder, fresh):
    done = fresh.snakemake()
    assert done.rc != 0
    for case, file in (("cut", "image"), ("shape", "label"), ("notct", "image")):
        assert done.text.count(f"scans/{case}/{file}.nii.gz:") == 1, done.text
        assert f"exclude: [mine/{case}]" in done.text
    assert "3 faults" in done.text
    assert "good1/" not in done.text and "Traceback" not in done.text
    assert not (fresh.results / "runs").exists() and "rule pretrain_method" not in done.text.replace("localrule", "rule")
    page = (fresh.results / "tiny" / "data" / "quality.html").read_text()  # there, though the gate stopped
    assert all(f"<code>mine/{case}</code>" in page for case in ("cut", "shape", "notct"))

    # the user goes on without two of them and repairs the third: what was read is not read again
    before = stamps(fresh)
    assert before
    scan(folder / "cut" / "image.nii.gz", 9)
    write(fresh, exclude=["mine/shape", "mine/notct"])
    done = fresh.snakemake("ingest_all")
    assert done.rc == 0, done.text
    assert "5 cases, 1 to be read" in done.text
    assert stamps(fresh) == before
    assert {"pretrain_method", "evaluate_encoder"} <= set(fresh.plan().jobs)
    cases = json.loads((fresh.results / "tiny" / "data" / "mine" / "0.verdicts.json").read_text())["cases"]
    assert [case["case"] for case in cases] == ["cut", "good1", "good2", "good3", "good4"] and all(case["ok"] for case in cases)


def test_a_misspelt_key_a_missing_and_an_empty_folder_are_told_together(fresh):
    (fresh.folder / "empty").mkdir()
    datasets = [{"reader": "files", "name": n, "root": n} for n in ("nowhere", "empty")]
    fresh.write_config(datasets=[*fresh.config["datasets"], *datasets], superpach=16, methods=["nemessis"])
    done = fresh.snakemake()
    assert done.rc != 0
    for said in (
        "'superpach'",
        "Did you mean 'superpatch'?",
        "nowhere: does not exist",
        "empty: no scan fits",
        "Did you mean 'nemesis'?",
    ):
        assert done.text.count(said) == 1, done.text
    assert "Traceback" not in done.text and not fresh.results.exists()
    planned = fresh.run("nemesis", "plan", "--configfile", "tiny.yaml")
    assert planned.rc == 1 and "nowhere: does not exist" in planned.text and "Traceback" not in planned.text


def test_a_failing_job_shows_its_message_once(place):
    """A training whose loss is not finite: the sentence, where the log is, and that the rest was done."""
    too_fast = {"name": "nemesis", "label": "Too fast", "settings": SIZE, "pretraining": {"learning_rate": 1e30, "steps": 20}}
    place.write_config(methods=[*CONFIG["methods"], too_fast])
    done = place.snakemake()
    assert done.rc != 0
    assert done.text.count("the loss is not finite") == 1, done.text
    assert "logs/pretrain_method/nemesis-" in done.text and "Traceback" not in done.text
