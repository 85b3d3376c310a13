"""Scores with their uncertainty, paired between methods: what other patients would change.

The figure is that of the procedure and not of the patients at hand: what it would give on average over many cohorts of as
many patients. Two things make a cohort's figure differ from it, and the interval adds their variances:

- *Test patients.* Superpatches of one patient are not independent: patients are resampled, with replacement, from the whole
  evaluation pool, and every cell (:mod:`nemesis.evaluation.cells`) is computed anew from the patients of its fold, each counted
  as often as it was drawn; a cell left without a class drops out of that resample. Resampling inside each fold would be the
  textbook's stratified bootstrap, but with few patients per fold it is blind to most of the variance. The bootstrap's variance
  is that of n patients around their own mean, hence the factor n / (n - 1).
- *Training patients.* Probes that were fitted on other patients score otherwise, which no resample of test patients shows
  (Nadeau and Bengio, "Inference for the generalization error", Machine Learning 2003). The draws of a label fraction f do: each
  fits on another share f of the same patients. To first order a score is its mean plus the mean of what each training patient
  adds to it, so draws of f differ by (1 - f) / f of the variance that other patients of the same number would bring. At all
  labels, of which there is one draw, the largest fraction below stands in: an upper bound, for influence falls with numbers.

Both are estimates, the latter of few draws, so the interval is that of Student's t with the degrees of freedom of Welch and
Satterthwaite, and p of a difference is of the same t. Percentiles of the resamples would be biased (a resample repeats patients,
which flatters the average precision) and too narrow. Of figures that have no draws, the interval holds the test patients alone,
and says so. What another seed of the encoder would change is in no interval: it stands beside, as the spread over seeds.

``python -m benchmarks.coverage`` simulates how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from nemesis.evaluation.cells import Cells, EasyNegatives, Floats, Metric, cells, mean_over_cells, places, ratio

MIN_PATIENTS_FOR_INTERVAL = 12
LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two, with its 95 % interval."""

    point: float | None  # mean over seeds; None where no cell counts
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]  # of a difference: empty, seeds of two methods have nothing in common
    n_patients: int  # whose superpatches were scored
    n_superpatches: int
    n_cells: int  # (fold, draw, organ) behind the mean; of a mean over superpatches 0
    p: float | None  # of a difference: two-sided, against zero
    note: str  # why there is no interval; empty where there is one
    training: bool  # the interval holds what other training patients would change, too


class Scores:
    """One run's predictions; cells and resamples are made once, whichever figures ask for them."""

    def __init__(self, predictions: pd.DataFrame) -> None:
        self.predictions = predictions
        self._cells: dict[tuple[Any, ...], Cells] = {}
        self._resampled: dict[tuple[Any, ...], Floats] = {}
        self._by_draw: dict[tuple[Any, ...], dict[int, float]] = {}

    def cells(self, protocol: str, label_fraction: float, easy_negatives: EasyNegatives = "out") -> Cells:
        """See :func:`nemesis.evaluation.cells.cells`."""
        key = (protocol, label_fraction, easy_negatives)
        if key not in self._cells:
            self._cells[key] = cells(self.predictions, *key)
        return self._cells[key]

    def resampled(
        self, protocol: str, label_fraction: float, metric: Metric, easy_negatives: EasyNegatives, resamples: int, seed: int
    ) -> Floats:
        """(1 + resamples,): the mean over cells with every patient counted once, then that of each resample."""
        key = (protocol, label_fraction, metric, easy_negatives, resamples, seed)
        if key not in self._resampled:
            run = self.cells(protocol, label_fraction, easy_negatives)
            self._resampled[key] = mean_over_cells(run, metric, _weights(len(run.patients), resamples, seed))
        return self._resampled[key]

    def by_draw(self, protocol: str, label_fraction: float, metric: Metric, easy_negatives: EasyNegatives) -> dict[int, float]:
        """The mean over the cells of each draw, every patient counted once."""
        key = (protocol, label_fraction, metric, easy_negatives)
        if key not in self._by_draw:
            run = self.cells(protocol, label_fraction, easy_negatives)
            once = np.ones((1, len(run.patients)))
            drawn = {draw: [cell for cell in run.cells if cell.draw == draw] for draw in {cell.draw for cell in run.cells}}
            self._by_draw[key] = {
                draw: float(mean_over_cells(Cells(run.patients, tuple(own)), metric, once)[0])
                for draw, own in sorted(drawn.items())
            }
        return self._by_draw[key]

    def fractions(self, protocol: str) -> set[float]:
        """The label fractions that a protocol was measured at."""
        chosen = self.predictions.loc[self.predictions["protocol"] == protocol, "label_fraction"]
        return {float(fraction) for fraction in chosen.unique()}


def summarise(
    runs: Sequence[Scores],
    protocol: str,
    label_fraction: float,
    metric: Metric = "auroc",
    easy_negatives: EasyNegatives = "out",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Score of one method: mean over its runs (seeds) and their cells, with an interval over patients.

    The interval is symmetric in the logit of the score, so that it ends inside (0, 1).

    Args:
        runs: predictions of each run of the method, on the same evaluation pool.
        protocol: linear, knn or a protocol of fine-tuning.
        label_fraction: share of the training patients.
        metric: the score.
        easy_negatives: "in" scores superpatches under the foreground floor too.
        resamples: bootstrap resamples of patients; one resample is applied to every run.
        seed: of the resamples.

    Raises:
        ValueError: runs that were not evaluated on the same patients.
    """
    return _score([(runs, 1.0)], protocol, label_fraction, metric, easy_negatives, resamples, seed)


def paired_difference(
    method: Sequence[Scores],
    reference: Sequence[Scores],
    protocol: str,
    label_fraction: float,
    metric: Metric = "auroc",
    easy_negatives: EasyNegatives = "out",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Score of ``method`` minus that of ``reference``, each a list of runs as in :func:`summarise`, on the same resamples and
    draws; ``p`` is that of the t of which the interval is made.

    Raises:
        ValueError: runs that were not evaluated on the same patients.
    """
    return _score([(method, 1.0), (reference, -1.0)], protocol, label_fraction, metric, easy_negatives, resamples, seed)


def mean_over_superpatches(runs: Sequence[pd.DataFrame], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of a figure that every superpatch has by itself, and over the runs (seeds) of a method, with an interval over
    patients.

    Args:
        runs: of each run ``patient``, ``superpatch`` and ``value``, a line per superpatch, on the same patients.
        resamples: bootstrap resamples of patients; one resample is applied to every run.
        seed: of the resamples.

    Raises:
        ValueError: runs that were not evaluated on the same patients.
    """
    placed = [places(run["patient"]) for run in runs]
    names = _shared([names for names, _ in placed])
    sizes = {"n_patients": len(names), "n_superpatches": runs[0]["superpatch"].nunique(), "n_cells": 0}
    if not names:
        return Estimate(None, None, None, (), p=None, note="no superpatch has this figure", training=False, **sizes)
    weights = _weights(len(names), resamples, seed)
    means = []
    for run, (_, place) in zip(runs, placed, strict=True):
        total = np.bincount(place, weights=run["value"].to_numpy(np.float64))
        means.append((weights @ total) / (weights @ np.bincount(place)))
    return _estimate([(means, 1.0)], sizes)


def mean_over_organs(
    runs: Sequence[pd.DataFrame], reference: Sequence[pd.DataFrame] = (), resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean over organs of the mean over scans of a figure, and over the runs (seeds) of a method, with an interval over patients;
    with a ``reference`` the paired difference to it.

    Args:
        runs: of each run ``patient``, ``organ`` and ``value``, a line per organ and scan, on the same patients; NaN counts as no
            value: an organ that has none in a resample drops out of it.
        reference: the same of another method.
        resamples: bootstrap resamples of patients; an organ that none of a resample's patients has drops out of it.
        seed: of the resamples.

    Raises:
        ValueError: runs that were not evaluated on the same patients.
    """
    names = _shared([places(run["patient"])[0] for run in (*runs, *reference)])
    sizes = {"n_patients": len(names), "n_superpatches": 0, "n_cells": runs[0]["organ"].nunique()}
    if not names:
        return Estimate(None, None, None, (), p=None, note="nothing was segmented", training=False, **sizes)
    weights = _weights(len(names), resamples, seed)
    sides = [([_organ_means(run, weights) for run in side], sign) for side, sign in ((runs, 1.0), (reference, -1.0)) if side]
    return _estimate(sides, sizes)


def _organ_means(run: pd.DataFrame, weights: Floats) -> Floats:
    """(R,): see :func:`mean_over_organs`."""
    place, value = places(run["patient"])[1], run["value"].to_numpy(np.float64)
    organ = run["organ"].astype(str).to_numpy()
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for name in np.unique(organ):
        here, n = (organ == name) & np.isfinite(value), weights.shape[1]
        drawn = weights @ np.bincount(place[here], minlength=n)
        summed = weights @ np.bincount(place[here], weights=value[here], minlength=n)
        total += np.divide(summed, drawn, out=np.zeros_like(total), where=drawn > 0)
        count += drawn > 0
    return ratio(total, count)


Side = tuple[Sequence[Scores], float]  # runs of a method, and the sign of their mean


def _score(
    sides: list[Side],
    protocol: str,
    label_fraction: float,
    metric: Metric,
    easy_negatives: EasyNegatives,
    resamples: int,
    seed: int,
) -> Estimate:
    found = [run.cells(protocol, label_fraction, easy_negatives) for runs, _ in sides for run in runs]
    _shared([run.patients for run in found])
    first = found[0].cells
    scored = {patient for cell in first for patient in cell.patients.tolist()}
    superpatches = {number for cell in first for number in cell.superpatch.tolist()}
    sizes = {"n_patients": len(scored), "n_superpatches": len(superpatches), "n_cells": len(first)}
    if not all(run.cells for run in found):
        note = "no organ has both classes among the test superpatches of any fold"
        return Estimate(None, None, None, (), p=None, note=note, training=False, **sizes)
    key = (protocol, label_fraction, metric, easy_negatives, resamples, seed)
    means = [([run.resampled(*key) for run in runs], sign) for runs, sign in sides]
    return _estimate(means, sizes, _of_training(sides, protocol, label_fraction, metric, easy_negatives), len(sides) == 1)


@dataclass(frozen=True)
class _Variance:
    """A variance, and the degrees of freedom of its estimate."""

    value: float
    degrees: int


def _of_training(
    sides: list[Side], protocol: str, label_fraction: float, metric: Metric, easy_negatives: EasyNegatives
) -> _Variance | None:
    """What other training patients would change; None where nothing was drawn twice."""
    runs = [run for own, _ in sides for run in own]
    for fraction in sorted(set.intersection(*(run.fractions(protocol) for run in runs)), reverse=True):
        if fraction > label_fraction or fraction == 1:
            continue
        drawn = [([run.by_draw(protocol, fraction, metric, easy_negatives) for run in own], sign) for own, sign in sides]
        draws = sorted(set.intersection(*(set(run) for own, _ in drawn for run in own)))
        if len(draws) > 1:
            each = [sum(sign * float(np.mean([run[draw] for run in own])) for own, sign in drawn) for draw in draws]
            own_draws = 1 / len(draws) if fraction == label_fraction else 0.0  # the score is itself a mean of so many
            return _Variance(float(np.var(each, ddof=1)) * (fraction / (1 - fraction) + own_draws), len(draws) - 1)
    return None


def _estimate(
    sides: list[tuple[list[Floats], float]], sizes: dict[str, int], training: _Variance | None = None, share: bool = False
) -> Estimate:
    """From (1 + R,) figures of each run of each side: with every patient counted once, then by resample; ``share``: of a score in
    [0, 1]."""
    means = np.sum([sign * np.mean(runs, axis=0) for runs, sign in sides], axis=0)
    point, sample = float(means[0]), means[1:][np.isfinite(means[1:])]
    seeds = tuple(float(run[0]) for run in sides[0][0]) if len(sides) == 1 else ()
    n = sizes["n_patients"]
    if np.isnan(point):
        return Estimate(None, None, None, (), p=None, note="nobody has this figure", training=False, **sizes)
    if n < MIN_PATIENTS_FOR_INTERVAL:
        note = f"no interval: {n} patients, at least {MIN_PATIENTS_FOR_INTERVAL} are needed"
        return Estimate(point, None, None, seeds, p=None, note=note, training=False, **sizes)
    if share and not 0 < point < 1:
        note = f"no interval: of a score of exactly {point:g} the spread cannot be told"
        return Estimate(point, None, None, seeds, p=None, note=note, training=False, **sizes)
    parts = [_Variance(float(np.var(sample)) * n / (n - 1), n - 1), *([training] if training else [])]
    error = float(np.sqrt(sum(part.value for part in parts)))
    degrees = error**4 / sum(part.value**2 / part.degrees for part in parts) if error > 0 else float(n - 1)
    low, high = _interval(point, error * float(stats.t.ppf((1 + LEVEL) / 2, degrees)), share)
    p = None
    if len(sides) == 2:
        p = float(2 * stats.t.sf(abs(point) / error, degrees)) if error > 0 else float(point == 0)
    return Estimate(point, low, high, seeds, p=p, note="", training=training is not None, **sizes)


def _interval(point: float, half: float, share: bool) -> tuple[float, float]:
    """Symmetric around the point; of a share in the logit, by the delta method."""
    if not share:
        return point - half, point + half
    logit, half = float(special.logit(point)), half / (point * (1 - point))
    return float(special.expit(logit - half)), float(special.expit(logit + half))


def _shared(patients: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if any(names != patients[0] for names in patients):
        raise ValueError("runs were evaluated on different patients: their scores cannot be put together")
    return patients[0]


@lru_cache(maxsize=8)
def _weights(patients: int, resamples: int, seed: int) -> Floats:
    """(1 + resamples, patients): every patient once, then how often each was drawn."""
    share = np.full(patients, 1 / patients)
    drawn = np.random.default_rng(seed).multinomial(patients, share, size=resamples)
    weights = np.vstack([np.ones(patients), drawn])
    weights.flags.writeable = False  # shared by whoever asks
    return weights
