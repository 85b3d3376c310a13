"""Estimates against computing every resample, every draw and every interval the long way."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small_predictions import predictions, score_of

from nemesis.evaluation.cells import METRICS, Metric, cells
from nemesis.evaluation.statistics import (
    MIN_PATIENTS_FOR_INTERVAL,
    Estimate,
    Scores,
    mean_over_organs,
    mean_over_superpatches,
    paired_difference,
    summarise,
)


def with_draws(skill: float = 1.0, seed: int = 0, draws: int = 5) -> Scores:
    """At all labels and, drawn several times, at half of them."""
    half = predictions(draws=draws, skill=0.8 * skill, seed=seed, label_fraction=0.5)
    return Scores(pd.concat([predictions(draws=1, skill=skill, seed=seed), half], ignore_index=True))


def mean_score(frame: pd.DataFrame, metric: Metric) -> float:
    """The mean over (fold, draw, organ) that have both classes."""
    groups = frame[~frame["easy"]].groupby(["fold", "draw", "organ"])
    return float(np.mean([score_of(metric, group) for _, group in groups if group["truth"].nunique() == 2]))


def resampled(frame: pd.DataFrame, metric: Metric, resamples: int, seed: int) -> list[float]:
    """The score of each resample of patients, with the superpatches of whoever was drawn repeated."""
    names = sorted(frame["patient"].unique())
    n = len(names)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    parts = {name: frame[frame["patient"] == name] for name in names}
    return [mean_score(pd.concat([parts[name] for name in np.repeat(names, weight)]), metric) for weight in drawn]


def half_width(estimate: Estimate) -> float:
    """Half of an interval that is symmetric in the logit, on that scale."""
    low, point, high = (np.log(x / (1 - x)) for x in (estimate.low, estimate.point, estimate.high))  # type: ignore[operator]
    assert high - point == pytest.approx(point - low)
    return float(high - point)


@pytest.mark.parametrize("metric", METRICS)
def test_the_point_is_scikit_learn_s(metric: Metric) -> None:
    frame = predictions()
    estimate = summarise([Scores(frame)], "linear", 1.0, metric, resamples=100)
    assert estimate.point == pytest.approx(mean_score(frame, metric), abs=1e-12)
    assert (estimate.n_patients, estimate.n_cells) == (12, 12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_resample_is_the_score_of_the_patients_drawn(metric: Metric) -> None:
    frame = predictions(patients=7, folds=2, draws=1)
    found = Scores(frame).resampled("linear", 1.0, metric, "out", 40, 5)
    assert found == pytest.approx([mean_score(frame, metric), *resampled(frame, metric, 40, 5)], abs=1e-9)


def test_an_interval_of_test_patients_by_hand() -> None:
    frame = predictions(draws=1)
    estimate = summarise([Scores(frame)], "linear", 1.0, resamples=60, seed=3)
    error = np.std(resampled(frame, "auroc", 60, 3)) * np.sqrt(12 / 11)
    slope = estimate.point * (1 - estimate.point)  # type: ignore[operator]
    assert half_width(estimate) == pytest.approx(stats.t.ppf(0.975, 11) * error / slope)
    assert not estimate.training


@pytest.mark.parametrize(("fraction", "share"), [(1.0, 1.0), (0.5, 1.0 + 1 / 5)])
def test_other_training_patients_widen_the_interval_by_what_draws_say(fraction: float, share: float) -> None:
    scores = with_draws()
    estimate = summarise([scores], "linear", fraction, resamples=60, seed=3)
    frame = scores.predictions
    half = frame[frame["label_fraction"] == 0.5]
    of_training = share * np.var([mean_score(half[half["draw"] == draw], "auroc") for draw in range(5)], ddof=1)
    own = frame[frame["label_fraction"] == fraction]
    of_test = np.var(resampled(own, "auroc", 60, 3)) * 12 / 11
    degrees = (of_test + of_training) ** 2 / (of_test**2 / 11 + of_training**2 / 4)  # Welch and Satterthwaite
    slope = estimate.point * (1 - estimate.point)  # type: ignore[operator]
    assert half_width(estimate) == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(of_test + of_training) / slope)
    assert estimate.training


def test_seeds_are_averaged_and_kept_and_their_spread_is_not_in_the_interval() -> None:
    runs = [Scores(predictions(seed=seed)) for seed in (0, 1, 2)]
    estimate = summarise(runs, "linear", 1.0, resamples=200)
    alone = [summarise([run], "linear", 1.0, resamples=200).point for run in runs]
    assert estimate.per_seed == pytest.approx(alone)
    assert estimate.point == pytest.approx(np.mean(alone))  # type: ignore[arg-type]
    means = np.mean([run.resampled("linear", 1.0, "auroc", "out", 200, 0)[1:] for run in runs], axis=0)
    slope = estimate.point * (1 - estimate.point)  # type: ignore[operator]
    assert half_width(estimate) == pytest.approx(stats.t.ppf(0.975, 11) * np.std(means) * np.sqrt(12 / 11) / slope)


def test_the_difference_is_paired_and_its_p_is_of_the_same_t() -> None:
    weak, strong = with_draws(skill=0.5), with_draws(skill=1.5)
    difference = paired_difference([strong], [weak], "linear", 1.0, resamples=500)
    a, b = (summarise([run], "linear", 1.0, resamples=500) for run in (strong, weak))
    assert difference.point == pytest.approx(a.point - b.point)  # type: ignore[operator]
    assert difference.low > 0 and difference.p < 0.05 and difference.training  # type: ignore[operator]
    assert difference.low + difference.high == pytest.approx(2 * difference.point)  # type: ignore[operator]
    other = paired_difference([weak], [strong], "linear", 1.0, resamples=500)
    assert (other.point, other.low, other.high, other.p) == pytest.approx(
        (-difference.point, -difference.high, -difference.low, difference.p)  # type: ignore[operator]
    )


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("metric", METRICS)
def test_identical_predictions_do_not_differ(metric: Metric, fraction: float) -> None:
    same = paired_difference([with_draws()], [with_draws()], "linear", fraction, metric, resamples=200)
    assert (same.point, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_an_interval_ends_before_a_perfect_score_and_a_perfect_score_has_none() -> None:
    good = summarise([Scores(predictions(skill=1.8))], "linear", 1.0, resamples=200)
    assert good.point > 0.95 and good.low < good.point < good.high < 1  # type: ignore[operator]
    perfect = summarise([Scores(predictions(skill=40.0))], "linear", 1.0, resamples=200)
    assert (perfect.point, perfect.low, perfect.high) == (1.0, None, None) and "exactly 1" in perfect.note


def test_runs_on_other_patients_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different patients"):
        paired_difference([Scores(predictions())], [Scores(predictions(patients=10))], "linear", 1.0)


def test_few_patients_get_no_interval_but_a_reason() -> None:
    few = Scores(predictions(patients=MIN_PATIENTS_FOR_INTERVAL - 1))
    estimate = summarise([few], "linear", 1.0, resamples=100)
    assert estimate.point is not None and estimate.low is estimate.high is None
    assert estimate.note == "no interval: 11 patients, at least 12 are needed"
    assert paired_difference([few], [few], "linear", 1.0, resamples=100).p is None
    assert summarise([Scores(predictions())], "linear", 1.0, resamples=100).low is not None


def test_folds_of_one_patient() -> None:
    estimate = summarise([Scores(predictions(folds=12))], "linear", 1.0, resamples=300)
    assert estimate.low < estimate.point < estimate.high  # type: ignore[operator]


def test_no_cell_with_both_classes() -> None:
    frame = predictions()
    frame["truth"] = False
    estimate = summarise([Scores(frame)], "linear", 1.0)
    assert (estimate.point, estimate.n_cells) == (None, 0)
    assert "both classes" in estimate.note


def test_patients_are_known_by_name_however_they_are_stored() -> None:
    """Categories of a file stand in the order of their first use; resamples must not depend on it."""
    frame = predictions()
    names = sorted(frame["patient"].unique(), reverse=True)
    stored = frame.assign(patient=pd.Categorical(frame["patient"], categories=[*names, "somebody else"]))
    plain, coded = (summarise([Scores(f)], "linear", 1.0, resamples=200) for f in (frame, stored))
    assert plain == coded
    both = cells(frame, "linear", 1.0), cells(stored, "linear", 1.0)
    assert both[0].patients == both[1].patients == tuple(reversed(names))


def test_what_was_asked_before_does_not_change_a_score() -> None:
    used, other = with_draws(), with_draws(seed=1)
    for metric in METRICS:
        for easy in ("in", "out"):
            summarise([used], "linear", 1.0, metric, easy, resamples=150, seed=1)  # type: ignore[arg-type]
    paired_difference([used], [other], "linear", 1.0, resamples=200)
    for metric in METRICS:
        for easy in ("in", "out"):
            again, fresh = (
                summarise([run], "linear", 1.0, metric, easy, resamples=200)  # type: ignore[arg-type]
                for run in (used, with_draws())
            )
            assert again == fresh


def values(seed: int, patients: int = 12) -> pd.DataFrame:
    """A figure of every superpatch; patients have different numbers of them."""
    rng = np.random.default_rng(seed)
    patient = np.repeat([f"p{i:02}" for i in range(patients)], np.arange(1, patients + 1))
    return pd.DataFrame({"patient": patient, "superpatch": np.arange(len(patient)), "value": rng.normal(20, 3, len(patient))})


def test_the_mean_over_superpatches_resamples_patients() -> None:
    frames, resamples = [values(0), values(1)], 60
    drawn = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=resamples)
    expected = []
    for weight in drawn:
        names = np.repeat([f"p{i:02}" for i in range(12)], weight)
        again = [pd.concat(frame[frame["patient"] == name] for name in names) for frame in frames]
        expected.append(np.mean([frame["value"].mean() for frame in again]))
    estimate = mean_over_superpatches(frames, resamples, seed=3)
    point = np.mean([frame["value"].mean() for frame in frames])
    half = stats.t.ppf(0.975, 11) * np.std(expected) * np.sqrt(12 / 11)
    assert (estimate.point, estimate.low, estimate.high) == pytest.approx((point, point - half, point + half))
    assert estimate.per_seed == pytest.approx([frame["value"].mean() for frame in frames])
    assert (estimate.n_patients, estimate.n_superpatches, estimate.n_cells) == (12, 78, 0)


def test_the_mean_over_organs_resamples_patients() -> None:
    rng = np.random.default_rng(0)
    run = pd.DataFrame([(f"p{n:02}", organ) for n in range(12) for organ in ("liver", "spleen")], columns=["patient", "organ"])
    run = run.assign(value=rng.random(len(run)))[:-3]  # the last patients lack an organ, or all
    run = pd.concat([run, run.assign(patient="q" + run["patient"])], ignore_index=True)
    other = run.assign(value=rng.random(len(run)))
    names, resamples = sorted(run["patient"].unique()), 50
    drawn = np.random.default_rng(2).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)

    def mean(frame: pd.DataFrame, weight: np.ndarray) -> float:
        again = pd.concat([frame[frame["patient"] == name] for name in np.repeat(names, weight)])
        return float(again.groupby("organ")["value"].mean().mean())

    gap = mean_over_organs([run], [other], resamples, seed=2)
    expected = [mean(run, weight) - mean(other, weight) for weight in drawn]
    n = len(names)
    half = stats.t.ppf(0.975, n - 1) * np.std(expected) * np.sqrt(n / (n - 1))
    once = np.ones(n, int)
    assert gap.point == pytest.approx(mean(run, once) - mean(other, once))
    assert (gap.low, gap.high) == pytest.approx((gap.point - half, gap.point + half))  # type: ignore[operator]
    assert gap.p == pytest.approx(2 * stats.t.sf(abs(gap.point) / (half / stats.t.ppf(0.975, n - 1)), n - 1))  # type: ignore[arg-type]


def test_of_a_figure_that_nobody_has_there_is_no_mean() -> None:
    """The distances of an organ that a network misses in every scan."""
    run = pd.DataFrame({"patient": [f"p{n:02}" for n in range(14)], "organ": "liver", "value": np.nan})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mean_over_organs([run, run], resamples=100)
    assert (found.point, found.low, found.high, found.n_patients) == (None, None, None, 14)


def test_means_without_superpatches_or_with_few_or_other_patients() -> None:
    nothing = mean_over_superpatches([values(0)[:0]])
    assert (nothing.point, nothing.low, nothing.n_superpatches) == (None, None, 0)
    few = mean_over_superpatches([values(0, patients=4)])
    assert few.point is not None and few.low is None and "4 patients" in few.note
    with pytest.raises(ValueError, match="different patients"):
        mean_over_superpatches([values(0), values(0, patients=5)])
