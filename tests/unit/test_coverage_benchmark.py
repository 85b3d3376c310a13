"""The simulation of cohorts judges what the tables print, and finds the intervals about right."""

import json
import sys

import numpy as np
import pytest

from benchmarks import coverage
from nemesis.evaluation.statistics import Estimate


def test_small_cohorts_are_told_by_number_of_patients(tmp_path, monkeypatch, capsys):
    out = tmp_path / "coverage.json"
    arguments = ["--repetitions", "40", "--resamples", "200", "--patients", "12", "18", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["coverage", *arguments])
    coverage.main()
    found = json.loads(out.read_text())
    assert set(found["patients"]) == {"12", "18"} and found["repetitions"] == 40
    for figures in found["patients"].values():
        assert {"auroc", "average_precision", "f1", "difference"} < set(figures["coverage"])
        assert figures["coverage"]["auroc"]["share"] > 0.8 and figures["alike_told_apart"] < 0.2
        assert figures["coverage"]["difference"]["mean"] > 0.01, "the stronger encoder is planted as better"
        assert 0.7 < figures["coverage"]["auroc"]["mean"] < 0.97
    assert "alike told apart" in capsys.readouterr().out


def test_an_interval_counts_where_it_holds_the_mean():
    ends = ((0.4, 0.6), (0.45, 0.7), (0.55, 0.7), (None, None))
    estimates = [Estimate(0.5, low, high, (), 12, 1, 1, None, "", False) for low, high in ends]
    told = coverage.covered(estimates)
    assert (told["mean"], told["sd"], told["share"]) == (0.5, 0.0, 0.5)
    assert told["width"] == pytest.approx(0.2)


def test_the_stand_in_and_the_suite_s_probe_agree_on_a_cohort():
    """Ridge regression stands for the logistic one: nearly the same AUROC from the same folds, draws and superpatches."""
    rng, clinic = np.random.default_rng(0), coverage.Clinic.of(12)
    truth, strength = clinic.draw(rng)
    x = coverage.features(rng, truth, strength * coverage.STRENGTH, np.eye(coverage.FEATURES)[:2])
    place = ["label_fraction", "draw", "fold", "organ", "superpatch"]
    one, other = (clinic.judge(truth, x, judge).astype({"organ": str}).sort_values(place) for judge in ("ridge", "suite"))
    for name in (*place, "truth"):
        assert np.array_equal(one[name], other[name]), name
    assert (one["patient"].astype(str).to_numpy() == other["patient"].astype(str).to_numpy()).all()
    assert np.corrcoef(one["score"], other["score"])[0, 1] > 0.85
