"""Cards, DICOM and the sample in an experiment: planned where the scans are, and where they are not."""

import json
from pathlib import Path

import pytest
import replicas
import yaml
from small_scans import body, organs, save

from nemesis.errors import NemesisError
from nemesis.experiment import plan
from nemesis.files import write_text

BASE = {
    "experiment": "t", "pools": {"evaluation": {"BTCV": "all"}}, "superpatch": 16, "probe": {"folds": 3}, "organs": ["liver"],
    "methods": ["random_vit"],
}  # fmt: skip


@pytest.fixture
def planned(tmp_path):
    def run(*datasets, dry_run=False, **top):
        write_text(tmp_path / "config.yaml", yaml.safe_dump({**BASE, "datasets": list(datasets), **top}))
        return plan([tmp_path / "config.yaml"], {"data_root": str(tmp_path / "raw")}, tmp_path / "results", dry_run)

    return run


def card(name, **more):
    return {"reader": "card", "name": name, "root": name, **more}


def test_cards_become_what_their_folders_hold(planned, tmp_path):
    replicas.btcv_raw(tmp_path / "raw/BTCV")
    replicas.hnscc(tmp_path / "raw/HNSCC")
    replicas.totalsegmentator(tmp_path / "raw/TotalSegmentator")
    experiment = planned(card("BTCV"), card("HNSCC"), card("TotalSegmentator", labels={}))
    assert {d.config.name: d.config.reader for d in experiment.datasets} == {
        "BTCV": "files", "HNSCC": "dicom", "TotalSegmentator": "files",
    }  # fmt: skip
    assert {case.case for case in experiment.evaluation} == {"0001", "0021", "0040"}
    assert [case.dataset for case in experiment.pretraining] == ["HNSCC"] * 3 + ["TotalSegmentator"] * 2
    assert {case.patient for case in experiment.pretraining if case.series} == {"HNSCC-01-0001", "HNSCC-01-0002"}
    report = json.dumps(experiment.report_spec())
    assert str(tmp_path / "raw") not in report and "1.2.1" not in report


def test_a_layout_of_a_card_and_a_key_of_its_own_are_told_with_all_other_faults(planned, tmp_path):
    replicas.kits23(tmp_path / "raw/kits23")
    (tmp_path / "raw/BTCV").mkdir()
    with pytest.raises(NemesisError) as error:
        planned(card("kits23", lables={}), card("BTCV"), card("kits32"), {"reader": "dicom", "name": "mine", "root": "none"})
    told = "\n".join(map(str, error.value.faults))
    for said in ("Did you mean 'labels'", "has no layout of BTCV", "Did you mean 'kits23'", "raw/none: does not exist"):
        assert told.count(said) == 1, told


def test_a_dry_run_plans_cards_whose_folders_are_not_there(planned, capsys):
    experiment = planned(card("BTCV"), card("LUNA16"), card("hnscc"), dry_run=True)
    assert [case.dataset for case in experiment.pretraining].count("LUNA16") == 888
    assert len(experiment.evaluation) == 30 and "NOT REAL SCANS" in capsys.readouterr().err
    with pytest.raises(NemesisError, match="Did you mean 'labels'"):
        planned(card("BTCV", lables={}), card("LUNA16"), dry_run=True)
    with pytest.raises(NemesisError, match="BTCV: does not exist"):
        planned(card("BTCV"), card("LUNA16"))


def test_the_salt_is_no_part_of_what_is_told(planned, tmp_path):
    replicas.btcv_raw(tmp_path / "raw/BTCV")
    replicas.hnscc(tmp_path / "raw/dicom")
    mine = {"reader": "dicom", "name": "mine", "root": "dicom", "salt": "sesame sesame"}
    experiment = planned(card("BTCV"), mine)
    assert len({case.patient for case in experiment.pretraining}) == 2
    for path in (tmp_path / "results").rglob("*"):
        assert path.is_dir() or b"sesame" not in path.read_bytes()


def test_real_ct_takes_the_sample_where_no_folder_is_named(tmp_path, monkeypatch, caplog):
    config = Path("config/real_ct.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NemesisError, match=r"results/data/sample: does not exist.*Run `nemesis data fetch sample`"):
        plan([config])
    assert len(plan([config], dry_run=True).evaluation) == 3
    for folder, more in (("results/data/sample", ()), ("six", ("x", "y"))):
        for case, label in {"ts_example": "label", "ts_example_dicom": "label", "ts_aorta": "label_partial"}.items():
            save(tmp_path / folder / case / "image.nii.gz", body())
            save(tmp_path / folder / case / f"{label}.nii.gz", organs())
        for case in more:
            save(tmp_path / folder / case / "image.nii.gz", body())
    caplog.clear()
    sample = plan([config])
    assert len(sample.pretraining) == len(sample.evaluation) == sample.report_spec()["transductive"] == 3
    assert "transductive" in caplog.text
    six = plan([config], {"data_root": "six"})
    assert [case.case for case in six.pretraining] == ["x", "y"] and six.report_spec()["transductive"] == 0
