"""Fine-tuning as a job: every arm judged by the same folds, resumed with the same bits, test patients looked at once."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from tuned import ORGANS, Segmenting, fine_tune, job, labelled_phantoms

import nemesis.evaluation.finetune as module
from nemesis.errors import NemesisError
from nemesis.evaluation.statistics import Scores, summarise
from nemesis.method import register

FILES = ("rows.parquet", "predictions.parquet", "segmentations.parquet")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return labelled_phantoms(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def segmenting(monkeypatch):
    """The method that segments, known to this test alone."""
    import nemesis.method

    monkeypatch.setattr(nemesis.method, "_registry", dict(nemesis.method._registry))
    register(Segmenting)


def read(folder):
    return tuple((folder / name).read_bytes() for name in FILES)


def rows_of(folder, **conditions):
    rows = pd.read_parquet(folder / "rows.parquet")
    for name, value in conditions.items():
        rows = rows[rows[name] == value]
    return rows


def test_predictions_are_those_the_tables_bootstrap(cohort, tmp_path):
    fine_tune(job(cohort, tmp_path / "out", folds_held_out=None))
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    estimate = summarise([Scores(found)], "finetune", 1.0, resamples=100)
    assert 0 < estimate.point < 1 and estimate.low is None and "10 patients" in estimate.note
    assert len(Scores(found).resampled("finetune", 1.0, "auroc", "out", 100, 0)) == 101
    assert estimate.n_patients == 10 and set(found["fold"]) == set(range(5))
    assert not found.duplicated(["organ", "superpatch"]).any(), "every superpatch is tested once"


def test_the_same_seed_gives_the_same_bytes_and_one_fold_is_one_fold(cohort, tmp_path):
    fine_tune(job(cohort, tmp_path / "one"))
    fine_tune(job(cohort, tmp_path / "two"))
    assert read(tmp_path / "one") == read(tmp_path / "two")
    found = pd.read_parquet(tmp_path / "one" / "predictions.parquet")
    assert set(found["fold"]) == {0} and found["patient"].nunique() == 2
    assert not (tmp_path / "one" / "state").exists()


@pytest.mark.parametrize("after", [2, 8])  # of 2 learning rates × 6 steps
def test_a_killed_job_goes_on_to_the_same_bytes(cohort, tmp_path, monkeypatch, after):
    spec = job(cohort, tmp_path / "out")
    fine_tune(spec)
    whole = read(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run = module.Tuning.run

    class Killed(Exception):
        pass

    def killed(self, until=None):
        run(self, after)
        raise Killed

    monkeypatch.setattr(module.Tuning, "run", killed)
    with pytest.raises(Killed):
        fine_tune(spec)
    assert not (tmp_path / "out" / "rows.parquet").exists()
    (state,) = (tmp_path / "out" / "state").rglob("*.pt")
    saved = torch.load(state, weights_only=True)
    assert (saved["trial"], saved["step"]) == ((0, 2) if after == 2 else (1, 2))
    monkeypatch.setattr(module.Tuning, "run", run)
    fine_tune(spec)
    assert read(tmp_path / "out") == whole


def test_state_of_another_specification_is_not_gone_on_with(cohort, tmp_path):
    (tmp_path / "out" / "state" / "0123456789ab").mkdir(parents=True)
    fine_tune(job(cohort, tmp_path / "out"))
    assert not (tmp_path / "out" / "state").exists()


def test_arms_start_where_they_say_and_scratch_needs_no_checkpoint(cohort, tmp_path):
    spec = job(cohort, tmp_path / "pretrained", learning_rates=[1e-8], checks=1)
    fine_tune(spec)
    scratch = {k: v for k, v in job(cohort, tmp_path / "scratch", arm="scratch", learning_rates=[1e-8], checks=1).items()
               if k != "checkpoint"}  # fmt: skip
    fine_tune(scratch)
    one, other = (pd.read_parquet(tmp_path / arm / "predictions.parquet") for arm in ("pretrained", "scratch"))
    assert set(one["protocol"]) == {"finetune"} and set(other["protocol"]) == {"finetune_scratch"}
    assert one["superpatch"].equals(other["superpatch"]) and not np.allclose(one["score"], other["score"])


def test_the_matched_control_costs_what_both_cost_together(cohort, tmp_path):
    for arm in ("pretrained", "scratch", "scratch_matched"):
        fine_tune(job(cohort, tmp_path / arm, arm=arm, learning_rates=[1e-3], checks=1))
    flop = {
        arm: {r.metric: r.value for r in rows_of(tmp_path / arm, unit="FLOP").itertuples()}
        for arm in ("pretrained", "scratch", "scratch_matched")
    }
    of_step = flop["scratch"]["downstream_flop"] / 6
    both = sum(flop["pretrained"].values())
    assert flop["pretrained"]["pretraining_flop"] > 0 and flop["scratch"]["pretraining_flop"] == 0
    assert flop["scratch"]["downstream_flop"] == flop["pretrained"]["downstream_flop"]
    assert abs(sum(flop["scratch_matched"].values()) - both) <= of_step / 2
    (chosen,) = rows_of(tmp_path / "scratch_matched", metric="learning_rate")["step"]
    assert chosen == rows_of(tmp_path / "scratch_matched", metric="downstream_steps")["value"].item() > 6


def test_what_validates_does_not_train_and_test_patients_do_neither(cohort, tmp_path, monkeypatch):
    seen = {"trained": set(), "validated": set(), "tested": set()}
    original = module.PresenceTask.of.__func__
    names = {}

    def of(cls, problem, validators, data, **rest):
        task = original(cls, problem, validators, data, **rest)
        seen["trained"] |= set(data.patient[task.train])
        seen["validated"] |= set(data.patient[task.validation])
        seen["tested"] |= problem.test
        names.update(train=problem.train)
        return task

    monkeypatch.setattr(module.PresenceTask, "of", classmethod(of))
    fine_tune(job(cohort, tmp_path / "out"))
    assert seen["trained"] | seen["validated"] == names["train"]
    assert not seen["trained"] & seen["validated"] and not names["train"] & seen["tested"]
    assert set(rows_of(tmp_path / "out", metric="auroc")["selection"]) == {"inner validation"}


def test_with_too_few_patients_the_rate_is_fixed_and_marked(cohort, tmp_path):
    fine_tune(job(cohort, tmp_path / "out", label_fractions=[0.25], fixed_learning_rate=5e-4))
    chosen = rows_of(tmp_path / "out", metric="learning_rate")
    assert chosen["value"].tolist() == [5e-4] and chosen["step"].tolist() == [6] and set(chosen["selection"]) == {"fixed"}
    assert set(rows_of(tmp_path / "out", metric="auroc")["selection"]) == {"fixed"}
    assert rows_of(tmp_path / "out", metric="training_patients")["value"].tolist() == [2]
    assert rows_of(tmp_path / "out", metric="validation").empty


def test_a_rate_that_diverges_has_no_say_and_if_all_do_it_is_told(cohort, tmp_path):
    fine_tune(job(cohort, tmp_path / "one", learning_rates=[1e30, 1e-3]))
    assert rows_of(tmp_path / "one", metric="learning_rate")["value"].tolist() == [1e-3]
    with pytest.raises(NemesisError, match="1e\\+30"):
        fine_tune(job(cohort, tmp_path / "all", learning_rates=[1e30]))


def test_a_network_that_segments_is_judged_on_whole_scans(cohort, tmp_path, segmenting):
    spec = job(cohort, tmp_path / "out", "segmenting", tasks=["segmentation"], steps=60, learning_rates=[3e-2], centred=0.8)
    fine_tune(spec)
    lines = pd.read_parquet(tmp_path / "out" / "segmentations.parquet")
    assert set(lines["protocol"]) == {"segment"} and set(lines["organ"]) <= set(ORGANS) and lines["patient"].nunique() == 2
    lines = lines[lines["metric"] == "dice"]
    assert lines["value"].between(0, 1).all()
    assert lines[lines["organ"] == "liver"]["value"].mean() > 0.2, "two convolutions find bright voxels"
    rows = rows_of(tmp_path / "out", metric="dice", organ="liver")
    assert rows["value"].item() == pytest.approx(lines[lines["organ"] == "liver"]["value"].mean())
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 0


def test_surfaces_are_judged_beside_dice_and_what_is_missed_or_invented_is_counted(cohort, tmp_path, segmenting):
    recipe = {"tasks": ["segmentation"], "learning_rates": [1e-8], "checks": 1, "surface_tolerance_mm": 1e3}
    fine_tune(job(cohort, tmp_path / "out", "segmenting", **recipe))
    lines = pd.read_parquet(tmp_path / "out" / "segmentations.parquet")
    figures = lines.pivot_table("value", ["patient", "organ"], "metric", dropna=False)
    assert {"dice", "hd95", "surface_dice"} <= set(figures)
    missed = figures["hd95"].isna()
    assert missed.any() and not missed.all(), "an untrained network sees some organs nowhere, others everywhere"
    assert (figures[missed][["dice", "surface_dice"]] == 0).all(axis=None)
    assert (figures[~missed]["hd95"] > 0).all() and (figures[~missed]["surface_dice"] == 1).all(), "all is within a metre"
    for organ, part in figures.groupby("organ"):
        rows = rows_of(tmp_path / "out", organ=organ).set_index("metric")
        assert rows.loc["missed", "value"] == part["hd95"].isna().sum() and rows.loc["hd95", "unit"] == "mm"
        assert rows.loc["hd95", "value"] == pytest.approx(part["hd95"].mean(), nan_ok=True)
        assert rows.loc["hd95", "n_patients"] == part["hd95"].notna().sum()


def test_every_look_at_the_inner_validation_is_a_row(cohort, tmp_path):
    fine_tune(job(cohort, tmp_path / "out", learning_rates=[1e-3, 3e-3]))
    looks = rows_of(tmp_path / "out", metric="validation")
    assert list(zip(looks["learning_rate"], looks["step"], strict=True)) == [(1e-3, 3), (1e-3, 6), (3e-3, 3), (3e-3, 6)]
    assert set(looks["selection"]) == {"inner validation"} and set(looks["protocol"]) == {"finetune"}
    (taken,) = rows_of(tmp_path / "out", metric="learning_rate").itertuples()
    best = looks[(looks["learning_rate"] == taken.value) & (looks["step"] == taken.step)]["value"].item()
    assert best == looks["value"].max()
