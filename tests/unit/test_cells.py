"""Scores of cells against scikit-learn, on random and on awkward input; which cells count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from small_predictions import predictions, score_of

from nemesis.evaluation.cells import BLOCK, METRICS, Cell, Cells, Metric, cell_score, cells, mean_over_cells
from nemesis.evaluation.problems import auroc, best_threshold


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("easy", ["out", "in"])
def test_cells_agree_with_scikit_learn(metric: Metric, easy: str) -> None:
    frame = predictions()
    scored = frame if easy == "in" else frame[~frame["easy"]]
    expected = [score_of(metric, group) for _, group in scored.groupby(["fold", "draw", "organ"])]
    found = cells(frame, "linear", 1.0, easy).cells  # type: ignore[arg-type]
    assert [cell_score(cell, metric) for cell in found] == pytest.approx(expected, abs=1e-12)


SUPERPATCHES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.50001, 0.9, 1.0]), st.integers(0, 3)),
    min_size=2,
    max_size=40,
)


@given(SUPERPATCHES, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_cell_of_weighted_patients_is_one_in_which_they_stand_so_often(superpatches, counts) -> None:
    """Ties, one patient alone, a class in one superpatch, patients without superpatches."""
    truth, score, member = (np.array(column) for column in zip(*superpatches, strict=True))
    assume(0 < truth.sum() < len(truth))
    threshold = np.full(len(truth), 0.3, np.float32)
    cell = Cell(0, 0, "liver", np.arange(4), member, np.arange(len(truth)), truth, score.astype(np.float32), threshold)
    every = np.repeat(np.arange(len(truth)), np.array(counts)[member])
    for metric in METRICS:
        frame = pd.DataFrame({"truth": truth, "score": score.astype(np.float32), "threshold": threshold})
        assert cell_score(cell, metric) == pytest.approx(score_of(metric, frame), abs=1e-12)
        found = mean_over_cells(Cells(("a", "b", "c", "d"), (cell,)), metric, np.array([counts], float))[0]
        again = frame.iloc[every]
        if again["truth"].nunique() == 2:
            assert found == pytest.approx(score_of(metric, again), abs=1e-12)
        else:
            assert np.isnan(found), "a resample without a class has no score"


@given(SUPERPATCHES)
def test_auroc_by_ranks(superpatches) -> None:
    truth, score, _ = (np.array(column) for column in zip(*superpatches, strict=True))
    if 0 < truth.sum() < len(truth):
        assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    else:
        assert np.isnan(auroc(truth, score))


@given(SUPERPATCHES)
def test_no_threshold_has_a_higher_f1_than_the_best(superpatches) -> None:
    truth, score, _ = (np.array(column) for column in zip(*superpatches, strict=True))
    assume(truth.any())
    score = score.astype(np.float32)
    found = f1_score(truth, score > np.float32(best_threshold(truth, score)))
    precision, recall, _ = precision_recall_curve(truth, score)
    highest = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    assert found == pytest.approx(highest, abs=1e-9)


def test_unknown_labels_are_no_negatives() -> None:
    """Where an organ was not drawn its superpatches are not among the predictions, and its patients not among a cell's."""
    frame = predictions(folds=2)
    undrawn = (frame["organ"] == "liver") & frame["patient"].isin(["p00", "p03"])
    found = {(cell.fold, cell.draw, cell.organ): cell for cell in cells(frame[~undrawn], "linear", 1.0).cells}
    hard = frame[~undrawn & ~frame["easy"]]
    for (fold, draw, organ), group in hard.groupby(["fold", "draw", "organ"]):
        cell = found[fold, draw, organ]
        assert len(cell.patients) == group["patient"].nunique() == (5 if organ == "liver" else 6)
        assert cell_score(cell, "auroc") == pytest.approx(roc_auc_score(group["truth"], group["score"]))
        assert cell_score(cell, "average_precision") == pytest.approx(average_precision_score(group["truth"], group["score"]))


def test_easy_negatives_do_not_change_which_cells_count() -> None:
    frame = predictions(folds=6)
    frame.loc[(frame["fold"] == 2) & ~frame["truth"], "easy"] = True  # all that is left above the floor is positive
    for easy in ("out", "in"):
        assert {cell.fold for cell in cells(frame, "linear", 1.0, easy).cells} == {0, 1, 3, 4, 5}  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_many_weightings_at_once_are_each_of_them_alone(metric: Metric) -> None:
    run = cells(predictions(), "linear", 1.0)
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=BLOCK + 2).astype(float)
    together = mean_over_cells(run, metric, weights)
    for number in (0, BLOCK - 1, BLOCK, BLOCK + 1):
        assert together[number] == pytest.approx(mean_over_cells(run, metric, weights[number : number + 1])[0], abs=1e-12)
