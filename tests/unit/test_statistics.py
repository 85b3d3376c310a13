"""Scores of cells against scikit-learn; the bootstrap over patients against computing every resample the long way."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from nemesis.evaluation.statistics import (
    METRICS,
    Metric,
    Scores,
    cell_score,
    cells,
    mean_over_superpatches,
    paired_difference,
    summarise,
)


def predictions(
    patients: int = 12, folds: int = 3, draws: int = 2, skill: float = 1.0, seed: int = 0, per_patient: int = 12
) -> pd.DataFrame:
    """Two organs; scores are rounded so that ties occur; a third of the superpatches are easy negatives."""
    world, own = np.random.default_rng(0), np.random.default_rng([seed, 1])
    frames = []
    for organ in ("liver", "spleen"):
        truth = world.random((patients, per_patient)) < 0.4
        easy = ~truth & (world.random(truth.shape) < 0.3)
        for draw in range(draws):
            noise = own.normal(size=truth.shape) + 0.3 * own.normal(size=(patients, 1))
            score = np.round(1 / (1 + np.exp(-(skill * (2.0 * truth - 1) + noise))), 2)
            frames.append(
                pd.DataFrame(
                    {
                        "protocol": "linear",
                        "label_fraction": 1.0,
                        "draw": draw,
                        "fold": np.repeat(np.arange(patients) % folds, per_patient),
                        "organ": organ,
                        "superpatch": np.arange(truth.size),
                        "patient": np.repeat([f"p{i:02d}" for i in range(patients)], per_patient),
                        "truth": truth.ravel(),
                        "score": score.ravel().astype(np.float32),
                        "threshold": np.float32(0.4),
                        "easy": easy.ravel(),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def reference(metric: Metric, frame: pd.DataFrame) -> float:
    truth, score = frame["truth"], frame["score"]
    if metric == "auroc":
        return float(roc_auc_score(truth, score))
    if metric == "average_precision":
        return float(average_precision_score(truth, score))
    return float(f1_score(truth, score > (0.5 if metric == "f1" else frame["threshold"])))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("easy", ["out", "in"])
def test_cells_and_point_agree_with_scikit_learn(metric: Metric, easy: str) -> None:
    frame = predictions()
    scored = frame if easy == "in" else frame[~frame["easy"]]
    expected = {key: reference(metric, group) for key, group in scored.groupby(["fold", "draw", "organ"])}
    found = cells(frame, "linear", 1.0, easy).cells  # type: ignore[arg-type]
    assert [cell_score(cell, metric) for cell in found] == pytest.approx(list(expected.values()), abs=1e-12)
    estimate = summarise([Scores(frame)], "linear", 1.0, metric, easy, resamples=100)  # type: ignore[arg-type]
    assert estimate.point == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert (estimate.n_patients, estimate.n_cells) == (12, 12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_resample_is_the_score_of_the_patients_drawn(metric: Metric) -> None:
    frame = predictions(patients=7, folds=2, draws=1)
    resamples, hard = 40, frame[~frame["easy"]]
    names = sorted(frame["patient"].unique())
    drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=resamples)
    expected = []
    for weight in drawn:
        values = []
        for _, group in hard.groupby(["fold", "draw", "organ"]):
            again = pd.concat(group[group["patient"] == name] for name in np.repeat(names, weight))
            if again["truth"].nunique() == 2:
                values.append(reference(metric, again))
        expected.append(np.mean(values))
    estimate = summarise([Scores(frame)], "linear", 1.0, metric, resamples=resamples, seed=5)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=1e-9)


def test_seeds_are_averaged_and_kept() -> None:
    runs = [Scores(predictions(seed=seed)) for seed in (0, 1, 2)]
    estimate = summarise(runs, "linear", 1.0, resamples=200)
    alone = [summarise([run], "linear", 1.0, resamples=200).point for run in runs]
    assert estimate.per_seed == pytest.approx(alone)
    assert estimate.point == pytest.approx(np.mean(alone))  # type: ignore[arg-type]
    assert estimate.low < estimate.point < estimate.high  # type: ignore[operator]


def test_the_difference_is_paired() -> None:
    weak, strong = Scores(predictions(skill=0.5)), Scores(predictions(skill=1.5))
    difference = paired_difference([strong], [weak], "linear", 1.0, resamples=500)
    a, b = (summarise([run], "linear", 1.0, resamples=500) for run in (strong, weak))
    assert difference.point == pytest.approx(a.point - b.point)  # type: ignore[operator]
    assert difference.low > 0  # type: ignore[operator]
    assert difference.p == pytest.approx(2 / 501)
    same = paired_difference([weak], [weak], "linear", 1.0, resamples=500)
    assert (same.point, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_runs_on_other_patients_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different patients"):
        paired_difference([Scores(predictions())], [Scores(predictions(patients=10))], "linear", 1.0)


def test_few_patients_get_no_interval_but_a_reason() -> None:
    few = Scores(predictions(patients=4))
    estimate = summarise([few], "linear", 1.0)
    assert estimate.point is not None
    assert estimate.low is None
    assert estimate.high is None
    assert "4 patients" in estimate.note
    assert paired_difference([few], [few], "linear", 1.0).p is None


def test_folds_of_one_patient() -> None:
    estimate = summarise([Scores(predictions(patients=6, folds=5))], "linear", 1.0)
    assert estimate.low < estimate.point < estimate.high  # type: ignore[operator]


def test_no_cell_with_both_classes() -> None:
    frame = predictions()
    frame["truth"] = False
    estimate = summarise([Scores(frame)], "linear", 1.0)
    assert estimate.point is None
    assert estimate.n_cells == 0
    assert "both classes" in estimate.note


def test_easy_negatives_do_not_change_which_cells_count() -> None:
    frame = predictions(folds=6)
    frame.loc[(frame["fold"] == 2) & ~frame["truth"], "easy"] = True  # all that is left above the floor is positive
    for easy in ("out", "in"):
        assert {cell.fold for cell in cells(frame, "linear", 1.0, easy).cells} == {0, 1, 3, 4, 5}  # type: ignore[arg-type]


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
    used, other = Scores(predictions()), Scores(predictions(seed=1))
    for metric in METRICS:
        for easy in ("in", "out"):
            summarise([used], "linear", 1.0, metric, easy, resamples=150, seed=1)  # type: ignore[arg-type]
    paired_difference([used], [other], "linear", 1.0, resamples=200)
    for metric in METRICS:
        for easy in ("in", "out"):
            again, fresh = (
                summarise([run], "linear", 1.0, metric, easy, resamples=200)  # type: ignore[arg-type]
                for run in (used, Scores(predictions()))
            )
            assert again == fresh


def values(seed: int, patients: int = 6) -> pd.DataFrame:
    """A figure of every superpatch; patients have different numbers of them."""
    rng = np.random.default_rng(seed)
    patient = np.repeat([f"p{i}" for i in range(patients)], np.arange(1, patients + 1))
    return pd.DataFrame({"patient": patient, "superpatch": np.arange(len(patient)), "value": rng.normal(20, 3, len(patient))})


def test_the_mean_over_superpatches_resamples_patients() -> None:
    frames, resamples = [values(0), values(1)], 60
    drawn = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=resamples)
    expected = []
    for weight in drawn:
        names = np.repeat([f"p{i}" for i in range(6)], weight)
        again = [pd.concat(frame[frame["patient"] == name] for name in names) for frame in frames]
        expected.append(np.mean([frame["value"].mean() for frame in again]))
    estimate = mean_over_superpatches(frames, resamples, seed=3)
    assert estimate.point == pytest.approx(np.mean([frame["value"].mean() for frame in frames]))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert estimate.per_seed == pytest.approx([frame["value"].mean() for frame in frames])
    assert (estimate.n_patients, estimate.n_superpatches, estimate.n_cells) == (6, 21, 0)


def test_means_without_superpatches_or_with_few_or_other_patients() -> None:
    nothing = mean_over_superpatches([values(0)[:0]])
    assert (nothing.point, nothing.low, nothing.n_superpatches) == (None, None, 0)
    few = mean_over_superpatches([values(0, patients=4)])
    assert few.point is not None and few.low is None and "4 patients" in few.note
    with pytest.raises(ValueError, match="different patients"):
        mean_over_superpatches([values(0), values(0, patients=5)])
