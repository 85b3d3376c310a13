"""Cells, of which every score is the mean, and the scores of a cell.

A *cell* is one (fold, draw, organ): the superpatches of one fold's test patients, scored by a probe that was fitted
on one draw of training patients. Which cells count depends on the test sets alone (both classes among the superpatches
above the foreground floor), never on the method or the label fraction, so that figures compare like with like.

Superpatches of one patient are not independent, so whatever is resampled is patients: a score is a function of how often
each patient of its fold counts, computed for many such weightings at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Metric = Literal["auroc", "f1", "f1_tuned", "average_precision"]
METRICS: tuple[Metric, ...] = ("auroc", "f1", "f1_tuned", "average_precision")
EasyNegatives = Literal["in", "out"]
BLOCK = 2000  # weightings at a time, whose intermediate figures a processor's cache holds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.intp]


@dataclass(frozen=True)
class Cell:
    """The scored superpatches of one (fold, draw, organ); n superpatches of m patients."""

    fold: int
    draw: int
    organ: str
    patients: Integers  # (m,) places in Cells.patients
    member: Integers  # (n,) place of each superpatch's patient in `patients`
    superpatch: Integers  # (n,)
    truth: Bools  # (n,)
    score: NDArray[np.float32]  # (n,)
    threshold: NDArray[np.float32]  # (n,) a superpatch is called positive above it; chosen on training patients


@dataclass(frozen=True)
class Cells:
    """The cells that count of one run under one protocol at one label fraction."""

    patients: tuple[str, ...]  # the whole evaluation pool, sorted
    cells: tuple[Cell, ...]


def cells(predictions: pd.DataFrame, protocol: str, label_fraction: float, easy_negatives: EasyNegatives = "out") -> Cells:
    """The cells of one run's predictions (:mod:`nemesis.evaluation.probe`) that count.

    Args:
        predictions: of one run.
        protocol: linear or knn.
        label_fraction: share of the training patients.
        easy_negatives: "in" scores superpatches under the foreground floor too; the cells that count stay the same.
    """
    chosen = predictions[(predictions["protocol"] == protocol) & (predictions["label_fraction"] == label_fraction)]
    names, place = places(chosen["patient"])
    values = {
        name: chosen[name].to_numpy() for name in ("fold", "draw", "organ", "superpatch", "truth", "easy", "score", "threshold")
    }
    number = chosen.groupby(["fold", "draw", "organ"], sort=True, observed=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(number[order], prepend=-1)))[1:]:
        truth, easy = values["truth"][group].astype(bool), values["easy"][group].astype(bool)
        hard = truth[~easy]
        if hard.all() or not hard.any():
            continue
        rows = group if easy_negatives == "in" else group[~easy]
        patients, member = np.unique(place[rows], return_inverse=True)
        fold, draw, organ = (values[name][group[0]] for name in ("fold", "draw", "organ"))
        truth, superpatch, score, threshold = (values[name][rows] for name in ("truth", "superpatch", "score", "threshold"))
        found.append(Cell(int(fold), int(draw), str(organ), patients, member, superpatch, truth.astype(bool), score, threshold))
    return Cells(names, tuple(found))


def cell_score(cell: Cell, metric: Metric) -> float:
    """One cell's score, every patient counted once."""
    return float(_SCORES[metric](cell, np.ones((1, len(cell.patients))))[0])


def mean_over_cells(run: Cells, metric: Metric, weights: Floats) -> Floats:
    """(R,): the score by each weighting of patients, the mean over the cells that have both classes in it; NaN where none has.

    Args:
        run: of n patients.
        metric: which score.
        weights: (R, n), how often each patient counts.
    """
    return np.concatenate([_mean_over_cells(run, metric, block) for block in _blocks(weights)])


def _mean_over_cells(run: Cells, metric: Metric, weights: Floats) -> Floats:
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    of_fold: dict[bytes, Floats] = {}  # the cells of a fold have mostly the same patients
    for cell in run.cells:
        key = cell.patients.tobytes()
        if key not in of_fold:
            of_fold[key] = weights[:, cell.patients]
        own = of_fold[key]
        defined = (own @ _per_patient(cell, cell.truth) > 0) & (own @ _per_patient(cell, ~cell.truth) > 0)
        total += np.where(defined, _SCORES[metric](cell, own), 0.0)
        count += defined
    return ratio(total, count)


def _blocks(weights: Floats) -> Iterator[Floats]:
    for first in range(0, len(weights), BLOCK):
        yield weights[first : first + BLOCK]


def _auroc(cell: Cell, weights: Floats) -> Floats:
    """(R,): share of (positive, negative) pairs ranked rightly (Mann–Whitney), ties one half."""
    below = _below(cell, ~cell.truth, side="left") + _below(cell, ~cell.truth, side="right")
    wins = _one_hot(cell, cell.truth).T @ (below / 2)  # (m, m): of the pairs (positive of a, negative of b)
    pairs = (weights @ _per_patient(cell, cell.truth)) * (weights @ _per_patient(cell, ~cell.truth))
    return ratio(((weights @ wins) * weights).sum(1), pairs)


def _average_precision(cell: Cell, weights: Floats) -> Floats:
    """(R,): mean over positives of the precision among the superpatches scored no lower (scikit-learn's definition)."""
    positives = _per_patient(cell, cell.truth)
    true = positives - _below(cell, cell.truth, side="left")  # (n_pos, m): at or above each positive
    false = _per_patient(cell, ~cell.truth) - _below(cell, ~cell.truth, side="left")
    hits = weights @ true.T  # (R, n_pos)
    precision = np.divide(hits, hits + weights @ false.T, out=np.zeros_like(hits), where=hits > 0)
    return ratio((precision * weights[:, cell.member[cell.truth]]).sum(1), weights @ positives)


def _f1(cell: Cell, weights: Floats, threshold: float | NDArray[np.float32]) -> Floats:
    """(R,): 2 TP / (2 TP + FP + FN); 0 where no positive is found."""
    called = cell.score > threshold
    hits = weights @ _per_patient(cell, called & cell.truth)
    return ratio(2 * hits, 2 * hits + weights @ _per_patient(cell, called != cell.truth))


_SCORES: dict[Metric, Callable[[Cell, Floats], Floats]] = {
    "auroc": _auroc,
    "f1": lambda cell, weights: _f1(cell, weights, 0.5),
    "f1_tuned": lambda cell, weights: _f1(cell, weights, cell.threshold),
    "average_precision": _average_precision,
}


def _per_patient(cell: Cell, which: Bools) -> Floats:
    """(m,): how many of these superpatches each patient has."""
    return np.bincount(cell.member[which], minlength=len(cell.patients)).astype(np.float64)


def _one_hot(cell: Cell, which: Bools) -> Floats:
    """(which.sum(), m): the patient of each of these superpatches."""
    return np.eye(len(cell.patients))[cell.member[which]]


def _below(cell: Cell, which: Bools, side: Literal["left", "right"]) -> Floats:
    """(n_pos, m): how many of these superpatches, by patient, score under each positive (``right``: or the same)."""
    order = np.argsort(cell.score[which], kind="stable")
    counts = np.zeros((len(order) + 1, len(cell.patients)))
    np.cumsum(_one_hot(cell, which)[order], axis=0, out=counts[1:])
    return np.asarray(counts[np.searchsorted(cell.score[which][order], cell.score[cell.truth], side=side)])


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient (R,); NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0))


def places(patient: pd.Series[str]) -> tuple[tuple[str, ...], Integers]:
    """The names of the patients, sorted, and the place of each row's patient among them."""
    words = patient.astype("category").cat.remove_unused_categories()
    names = np.asarray(words.cat.categories, object)
    rank = np.empty(len(names), np.intp)
    rank[np.argsort(names)] = np.arange(len(names))
    return tuple(sorted(names)), rank[words.cat.codes.to_numpy()]
