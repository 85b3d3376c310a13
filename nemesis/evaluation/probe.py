"""Frozen probes: which organs are in a superpatch, read off its features by logistic regression or by neighbours.

Patients of the evaluation pool are split into folds; inside a fold's training patients, nested subsets stand for
fewer labels. For each (fold, label fraction, draw) the features are standardised on the subset's superpatches; every
organ is a problem of its own, from which superpatches of patients in whom it was not annotated are left out.
Superpatches under the foreground floor (easy negatives) are never fitted; they are predicted, so that scores with
them can stand beside the main ones.

- linear: L2-regularised logistic regression (scikit-learn's objective, C times the summed log loss + ½|w|², free
  intercept). C is the value with the lowest log loss in inner cross-validation over the subset's patients. An organ
  that has no inner fold with both classes to train on, or a subset of fewer than 5 patients, takes the fixed C and is
  marked "fixed".
- knn: cosine similarity of the standardised features, votes weighted by exp(similarity / 0.07) (Wu et al.,
  "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018). Nothing is selected.

The threshold of the tuned F1 is the one with the highest F1 on the inner folds' validation predictions, or 0.5 where
there are none. An organ whose subset lacks a class is predicted 0.5 everywhere, which makes its AUROC 0.5; such cells
are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from nemesis.config import Probe
from nemesis.evaluation.problems import (
    CHANCE,
    INNER_FOLDS,
    PREDICTIONS,
    Answer,
    Bools,
    Data,
    Floats,
    Problem,
    auroc,
    belongs,
    best_threshold,
    both_classes,
    data_of,
    inner_folds,
    predictions_of,
    prevalence,
    problems,
    rows_of,
    training_rows,
)
from nemesis.evaluation.progress import progress

__all__ = ["PREDICTIONS", "best_threshold", "fit_logistic", "probe", "standardise"]

KNN_TEMPERATURE = 0.07

Protocol = Literal["linear", "knn"]
Solver = Callable[[Floats, Bools, Bools, NDArray[np.intp] | None, Floats, Probe], Answer]


def probe(
    features: NDArray[np.float32], table: pd.DataFrame, organs: Sequence[str], settings: Probe
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Judge frozen features by every protocol, label fraction, draw and fold.

    Args:
        features: (N, F), one row per row of ``table``.
        table: the evaluation superpatches (:func:`nemesis.data.superpatches.evaluation_superpatches`).
        organs: names, each a column of ``table``.
        settings: section ``probe`` of the configuration; its ``threads`` is how many problems are solved at once and
            changes no bit of the results.

    Returns:
        The predictions (:data:`PREDICTIONS`) and the rows: auroc, f1, f1_tuned, average_precision of each cell, with
        easy negatives out and in; per problem training_patients and training_superpatches; per cell of the linear probe
        its regularisation and validation_auroc (over the validation predictions of all inner folds of the training
        patients: what may be looked at to choose); per protocol and fraction chance_organs, the cells at chance for want
        of a class; per organ its prevalence.

    Raises:
        NemesisError: fewer than 3 patients with labels of these organs.
    """
    data = data_of(table, organs)
    asked = problems(data, settings.folds, settings.split_seed, settings.label_fractions, settings.draws)
    tables: list[pa.Table] = []
    details: dict[tuple[str, Problem], Answer] = {}
    # one BLAS thread each, so that neither the number of workers nor of cores changes a sum
    with threadpool_limits(1), ThreadPoolExecutor(settings.threads) as workers:
        answers = workers.map(lambda problem: _answer(features, data, problem, settings), asked)
        for number, (problem, found) in enumerate(zip(asked, answers, strict=True), 1):
            for protocol, answer in found.items():
                tables.append(predictions_of(data, organs, problem, protocol, answer))
                details[protocol, problem] = answer
            progress("probe", number, len(asked))
    predictions = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
    dataset = "+".join(sorted(table["dataset"].astype(str).unique()))
    rows = [*prevalence(data, organs), *(row for problem in asked for row in training_rows(data, problem))]
    rows += rows_of(predictions, data, organs, details)
    return predictions, [{"dataset": dataset} | row for row in rows]


def _answer(features: NDArray[np.float32], data: Data, problem: Problem, settings: Probe) -> dict[Protocol, Answer]:
    train = np.flatnonzero(belongs(data.patient, problem.train) & ~data.easy)
    test = np.flatnonzero(belongs(data.patient, problem.test))
    x, x_test = standardise(features[train], features[test])
    inner = _inner_fold(data.patient[train], problem.train, settings.split_seed)
    solvers: dict[Protocol, Solver] = {"linear": _linear, "knn": _neighbours}
    return {
        protocol: solver(x, data.truth[train], data.known[train], inner, x_test, settings)
        for protocol, solver in solvers.items()
        if protocol in settings.protocols
    }


def standardise(train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Both (n, F) in the units of the training rows' mean and standard deviation; a constant feature becomes 0."""
    mean, deviation = np.zeros(train.shape[1]), np.ones(train.shape[1])
    if len(train):
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # a feature that varies by rounding alone is constant: dividing by that noise would make it count
    scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12), 1 / np.maximum(deviation, 1e-300), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _inner_fold(patient: NDArray[np.object_], train: frozenset[str], seed: int) -> NDArray[np.intp] | None:
    """(n,): the inner fold that validates each training row; None where there are too few patients to choose."""
    held_out = inner_folds(train, seed)
    fold = np.zeros(len(patient), np.intp)
    for number, group in enumerate(held_out):
        fold[belongs(patient, group)] = number
    return fold if held_out else None


def _linear(x: Floats, truth: Bools, known: Bools, inner: NDArray[np.intp] | None, x_test: Floats, settings: Probe) -> Answer:
    n, organs = truth.shape
    learnable = both_classes(truth, known)
    basis, z = _principal(x)
    fixed = settings.fixed_regularisation
    chosen = np.full(organs, fixed)
    threshold, selected, validated_auroc = np.full(organs, CHANCE, np.float32), np.zeros(organs, bool), np.full(organs, np.nan)
    if inner is not None:
        values = np.array(sorted(set(settings.regularisation)))
        trained_on = [known & (inner != fold)[:, None] for fold in range(INNER_FOLDS)]
        usable = np.stack([both_classes(truth, rows) for rows in trained_on])  # (inner folds, organs)
        # every (inner fold, organ) is one column of a joint problem; each C starts where the stronger one ended
        shape = (n, INNER_FOLDS, organs)
        weight = (np.stack(trained_on, 1) & usable).reshape(n, -1)
        target = np.broadcast_to(truth[:, None, :], shape).reshape(n, -1)
        logit, start = np.empty((n, len(values), organs)), None
        for number, value in enumerate(values):
            start = fit_logistic(z, target, weight, np.full(weight.shape[1], value), tolerance=1e-2, start=start)
            logit[:, number] = (z @ start[:-1] + start[-1]).reshape(shape)[np.arange(n), inner]  # out of fold
        validated = known & usable[inner]
        loss = np.logaddexp(0, np.where(truth[:, None, :], -logit, logit)) * validated[:, None, :]
        best = loss.sum(0).argmin(0)  # the strongest regularisation among equals
        # an organ drawn only in patients whose fold's fit lacks a class has nothing to be validated on
        selected = validated.any(0) & learnable
        chosen = np.where(selected, values[best], fixed)
        for organ in np.flatnonzero(selected):
            rows = validated[:, organ]
            validation = expit(logit[rows, best[organ], organ]).astype(np.float32)
            threshold[organ] = best_threshold(truth[rows, organ], validation)
            validated_auroc[organ] = auroc(truth[rows, organ], logit[rows, best[organ], organ])
    score = np.full((len(x_test), organs), CHANCE, np.float32)
    if learnable.any():
        rows = known[:, learnable]
        weights = fit_logistic(z, truth[:, learnable], rows, chosen[learnable], tolerance=1e-5)
        score[:, learnable] = expit(x_test @ (basis @ weights[:-1]) + weights[-1])
    return Answer(score, threshold, selected, selected, ~learnable, np.where(learnable, chosen, np.nan), validated_auroc)


def _principal(x: Floats) -> tuple[Floats, Floats]:
    """Orthonormal basis (F, r) of the rows of ``x`` (n, F), r ≤ min(n, F), and the rows' coordinates (n, r) in it."""
    n, f = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if n < f else x.T @ x)
    kept = values > 1e-10 * max(values[-1] if len(values) else 0.0, 1e-300)
    if n < f:
        basis = x.T @ (vectors[:, kept] / np.sqrt(values[kept]))
        return basis, vectors[:, kept] * np.sqrt(values[kept])
    return vectors[:, kept], x @ vectors[:, kept]


def fit_logistic(z: Floats, truth: Bools, weight: Bools, c: Floats, tolerance: float, start: Floats | None = None) -> Floats:
    """Many logistic regressions on the same rows at once: column k minimises c_k Σ_i weight_ik loss_ik + ½|w_k|².

    The columns of ``z`` are orthogonal (principal coordinates), so a diagonal scaling makes every Hessian nearly the
    identity, and one L-BFGS over all columns together needs a few dozen matrix products: two orders of magnitude
    faster than a fit each.

    Args:
        z: (n, r) coordinates.
        truth: (n, K) targets.
        weight: (n, K), which rows a column is fitted on; a column with none stays at zero.
        c: (K,) inverse strengths of the L2 penalty, scikit-learn's C.
        tolerance: largest gradient, in the scaled coordinates, at which the search stops.
        start: (r + 1, K), a solution nearby.

    Returns:
        (r + 1, K): the coefficients and, in the last row, the intercepts.
    """
    n, r = z.shape
    k = truth.shape[1]
    count = weight.sum(0)
    prevalence = (truth & weight).sum(0) / np.maximum(count, 1)
    curvature = np.maximum(prevalence * (1 - prevalence), 1e-3) * count / max(n, 1)
    spread = np.einsum("ij,ij->j", z, z)
    scale = np.empty((r + 1, k))
    scale[:r] = 1 / np.sqrt(spread[:, None] * curvature + 1 / c)
    scale[r] = 1 / np.sqrt(np.maximum(n * curvature, 1e-3))
    mask, target = weight.astype(np.float64), truth.astype(np.float64)

    def loss(flat: Floats) -> tuple[float, Floats]:
        w = scale * flat.reshape(r + 1, k)
        logit = z @ w[:r] + w[r]
        small = np.exp(-np.abs(logit))
        entropy = np.maximum(logit, 0) + np.log1p(small) - target * logit
        residual = mask * (np.where(logit >= 0, 1.0, small) / (1 + small) - target)
        gradient = np.empty_like(w)
        gradient[:r] = z.T @ residual + w[:r] / c
        gradient[r] = residual.sum(0)
        total = float((mask * entropy).sum() + 0.5 * (w[:r] ** 2 / c).sum())
        return total, (scale * gradient).ravel()

    if start is None:
        start = np.zeros((r + 1, k))
        start[r] = np.where(count > 0, np.log((prevalence + 1e-3) / (1 - prevalence + 1e-3)), 0.0)
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 1000, "maxfun": 2000}
    found = minimize(loss, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    solution: Floats = scale * found.x.reshape(r + 1, k)
    return solution


def _neighbours(x: Floats, truth: Bools, known: Bools, inner: NDArray[np.intp] | None, x_test: Floats, settings: Probe) -> Answer:
    organs = truth.shape[1]
    learnable = both_classes(truth, known)
    x, x_test = _unit(x), _unit(x_test)
    threshold, tuned = np.full(organs, CHANCE, np.float32), np.zeros(organs, bool)
    if inner is not None:
        validation = np.empty(truth.shape, np.float32)
        usable = np.empty(truth.shape, bool)
        for fold in range(INNER_FOLDS):
            here = inner == fold
            validation[here] = _vote(x[here] @ x[~here].T, truth[~here], known[~here], settings.neighbours)
            usable[here] = known[here] & both_classes(truth[~here], known[~here])
        tuned = usable.any(0) & learnable
        for organ in np.flatnonzero(tuned):
            rows = usable[:, organ]
            threshold[organ] = best_threshold(truth[rows, organ], validation[rows, organ])
    score = _vote(x_test @ x.T, truth, known, settings.neighbours)
    score[:, ~learnable] = CHANCE
    nothing = np.full(organs, np.nan)
    return Answer(score, threshold, np.zeros(organs, bool), tuned, ~learnable, nothing, nothing)


def _vote(similarity: Floats, truth: Bools, known: Bools, k: int) -> NDArray[np.float32]:
    """Weighted share of positives (m, organs) among the ``k`` most similar rows (m, n) in which an organ is known."""
    score = np.full((len(similarity), truth.shape[1]), CHANCE, np.float32)
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):  # organs annotated in the same patients share their neighbours
        count = int(min(k, pattern.sum()))
        if not count:
            continue
        organs = np.flatnonzero(which.ravel() == number)
        near = similarity[:, pattern]
        nearest = np.argpartition(-near, count - 1, axis=1)[:, :count]
        weight = np.exp((np.take_along_axis(near, nearest, axis=1) - 1) / KNN_TEMPERATURE)
        votes = truth[np.ix_(pattern, organs)][nearest]  # (m, count, organs)
        score[:, organs] = np.einsum("mc,mco->mo", weight, votes) / weight.sum(1, keepdims=True)
    return score


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
