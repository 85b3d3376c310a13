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

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from nemesis.config import MIN_EVALUATION_PATIENTS, MIN_PATIENTS_FOR_SELECTION, Probe
from nemesis.data.pools import folds, label_subsets
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.progress import progress
from nemesis.evaluation.statistics import METRICS, Cell, EasyNegatives, cell_score, cells

INNER_FOLDS = 5
KNN_TEMPERATURE = 0.07
CHANCE = 0.5

Protocol = Literal["linear", "knn"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PREDICTIONS = pa.schema(
    [
        ("protocol", pa.dictionary(pa.int8(), pa.string())),
        ("label_fraction", pa.float64()),
        ("draw", pa.int16()),
        ("fold", pa.int16()),
        ("organ", pa.dictionary(pa.int8(), pa.string())),
        ("superpatch", pa.int32()),  # row of the superpatch table
        ("patient", pa.dictionary(pa.int32(), pa.string())),  # dataset/patient
        ("truth", pa.bool_()),
        ("score", pa.float32()),
        ("threshold", pa.float32()),  # a tuned call is positive above it
        ("easy", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Problem:
    """One (fold, label fraction, draw): who is trained on and who is tested."""

    fraction: float
    draw: int
    fold: int
    train: frozenset[str]
    test: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """Scores of all test superpatches (n, organs) in [0, 1] with what was chosen for each organ."""

    score: NDArray[np.float32]
    threshold: NDArray[np.float32]  # (organs,)
    selected: Bools  # (organs,): hyper-parameters come from inner validation
    tuned: Bools  # (organs,): so does the threshold
    chance: Bools  # (organs,): the training subset lacks a class
    regularisation: Floats  # (organs,): C; NaN where there is none
    validation: Floats  # (organs,): AUROC in inner validation at that C; NaN where there is none


@dataclass(frozen=True)
class _Data:
    """The superpatch table as arrays."""

    features: NDArray[np.float32]  # (N, F)
    truth: Bools  # (N, organs)
    known: Bools  # (N, organs)
    easy: Bools  # (N,)
    patient: NDArray[np.object_]  # (N,)


def check_patients(patients: int) -> None:
    """The check of what planning cannot know: in how many patients the probed organs turned out to be drawn.

    Raises:
        NemesisError: fewer patients than a probe needs.
    """
    if patients < MIN_EVALUATION_PATIENTS:
        what = f"the probe needs {MIN_EVALUATION_PATIENTS} evaluation patients with labels of its organs, there are {patients}"
        raise NemesisError(Fault("pools.evaluation", what, "Add labelled patients to the evaluation pool"))


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
    names = (table["dataset"].astype(str) + "/" + table["patient"].astype(str)).to_numpy(object)
    labels = table[list(organs)].to_numpy()
    data = _Data(features, labels == 1, labels >= 0, table["easy"].to_numpy(bool), names)
    problems = _problems(sorted(set(names[data.known.any(1)])), settings)
    tables, details = [], {}
    # one BLAS thread each, so that neither the number of workers nor of cores changes a sum
    with threadpool_limits(1), ThreadPoolExecutor(settings.threads) as workers:
        answers = workers.map(lambda problem: _answer(data, problem, settings), problems)
        for number, (problem, found) in enumerate(zip(problems, answers, strict=True), 1):
            for protocol, answer in found.items():
                tables.append(_predictions(data, organs, problem, protocol, answer))
                details[protocol, problem] = answer
            progress("probe", number, len(problems))
    predictions = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
    dataset = "+".join(sorted(table["dataset"].astype(str).unique()))
    rows = _rows(predictions, data, organs, settings, problems, details)
    return predictions, [{"dataset": dataset} | row for row in rows]


def _problems(patients: list[str], settings: Probe) -> list[Problem]:
    check_patients(len(patients))
    found = []
    k = min(settings.folds, len(patients))
    if k < settings.folds:
        print(f"probe: {k} folds, not {settings.folds}, as only {len(patients)} patients have labels of its organs", flush=True)
    tests = folds(patients, k, settings.split_seed)
    for fold, test in enumerate(tests):
        train = [patient for patient in patients if patient not in set(test)]
        for draw in range(settings.draws):
            subsets = label_subsets(train, settings.label_fractions, draw, settings.split_seed)
            for fraction in sorted(set(settings.label_fractions)):
                if fraction < 1 or draw == 0:  # every draw of all patients is the same
                    found.append(Problem(fraction, draw, fold, frozenset(subsets[fraction]), frozenset(test)))
    return sorted(found, key=lambda p: (p.fraction, p.draw, p.fold))


def _answer(data: _Data, problem: Problem, settings: Probe) -> dict[Protocol, Answer]:
    train = np.flatnonzero(_belongs(data.patient, problem.train) & ~data.easy)
    test = np.flatnonzero(_belongs(data.patient, problem.test))
    x, x_test = standardise(data.features[train], data.features[test])
    inner = _inner_folds(data.patient[train], problem.train, settings.split_seed)
    solvers = {"linear": _linear, "knn": _neighbours}
    return {
        protocol: solvers[protocol](x, data.truth[train], data.known[train], inner, x_test, settings)
        for protocol in settings.protocols
    }


def standardise(train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Both (n, F) in the units of the training rows' mean and standard deviation; a constant feature becomes 0."""
    mean, deviation = np.zeros(train.shape[1]), np.ones(train.shape[1])
    if len(train):
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # a feature that varies by rounding alone is constant: dividing by that noise would make it count
    scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12), 1 / np.maximum(deviation, 1e-300), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _inner_folds(patient: NDArray[np.object_], train: frozenset[str], seed: int) -> NDArray[np.intp] | None:
    """(n,): the inner fold that validates each training row; None where there are too few patients to choose."""
    if len(train) < MIN_PATIENTS_FOR_SELECTION:
        return None
    fold = np.zeros(len(patient), np.intp)
    for number, held_out in enumerate(folds(sorted(train), INNER_FOLDS, seed)):
        fold[_belongs(patient, frozenset(held_out))] = number
    return fold


def _linear(x: Floats, truth: Bools, known: Bools, inner: NDArray[np.intp] | None, x_test: Floats, settings: Probe) -> Answer:
    n, organs = truth.shape
    learnable = _both_classes(truth, known)
    basis, z = _principal(x)
    fixed = settings.fixed_regularisation
    chosen = np.full(organs, fixed)
    threshold, selected, validated_auroc = np.full(organs, CHANCE, np.float32), np.zeros(organs, bool), np.full(organs, np.nan)
    if inner is not None:
        values = np.array(sorted(set(settings.regularisation)))
        trained_on = [known & (inner != fold)[:, None] for fold in range(INNER_FOLDS)]
        usable = np.stack([_both_classes(truth, rows) for rows in trained_on])  # (inner folds, organs)
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
    learnable = _both_classes(truth, known)
    x, x_test = _unit(x), _unit(x_test)
    threshold, tuned = np.full(organs, CHANCE, np.float32), np.zeros(organs, bool)
    if inner is not None:
        validation = np.empty(truth.shape, np.float32)
        usable = np.empty(truth.shape, bool)
        for fold in range(INNER_FOLDS):
            here = inner == fold
            validation[here] = _vote(x[here] @ x[~here].T, truth[~here], known[~here], settings.neighbours)
            usable[here] = known[here] & _both_classes(truth[~here], known[~here])
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


def best_threshold(truth: Bools, score: NDArray[np.float32]) -> float:
    """The threshold with the highest F1 when a score above it is called positive; the highest such threshold."""
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(truth[order])
    last = np.append(ranked[1:] < ranked[:-1], True)  # a cut goes between scores, not through a tie
    f1 = np.where(last, 2 * hits / (np.arange(1, len(score) + 1) + truth.sum()), -1.0)
    cut = int(f1.argmax())
    upper, lower = ranked[cut], ranked[cut + 1] if cut + 1 < len(ranked) else np.float32(0.0)
    middle = np.float32((upper + lower) / 2)
    return float(middle if lower <= middle < upper else np.nextafter(upper, np.float32(-1)))


def auroc(truth: Bools, score: Floats) -> float:
    """Area under the ROC curve (Mann–Whitney), ties one half; NaN where a class lacks."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    wins = rankdata(score)[truth].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def _both_classes(truth: Bools, known: Bools) -> Bools:
    """(organs,): the known rows hold both classes."""
    return np.logical_and((truth & known).any(0), (~truth & known).any(0))


def _belongs(patient: NDArray[np.object_], group: frozenset[str]) -> Bools:
    return np.fromiter((name in group for name in patient), bool, len(patient))


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _predictions(data: _Data, organs: Sequence[str], problem: Problem, protocol: Protocol, answer: Answer) -> pa.Table:
    test = np.flatnonzero(_belongs(data.patient, problem.test))
    organ, row = np.nonzero(data.known[test].T)
    superpatch, n = test[row], len(row)

    def constant(name: str, value: float | int | str) -> pa.Array:
        return pa.array([value] * n, PREDICTIONS.field(name).type)

    columns = {
        "protocol": constant("protocol", protocol),
        "label_fraction": constant("label_fraction", problem.fraction),
        "draw": constant("draw", problem.draw),
        "fold": constant("fold", problem.fold),
        "organ": pa.DictionaryArray.from_arrays(pa.array(organ, pa.int8()), list(organs)),
        "superpatch": superpatch,
        "patient": pa.array(data.patient[superpatch], pa.string()).dictionary_encode(),
        "truth": data.truth[superpatch, organ],
        "score": answer.score[row, organ],
        "threshold": answer.threshold[organ],
        "easy": data.easy[superpatch],
    }
    return pa.table(columns, schema=PREDICTIONS)


def _rows(
    predictions: pa.Table,
    data: _Data,
    organs: Sequence[str],
    settings: Probe,
    problems: list[Problem],
    answers: Mapping[tuple[Protocol, Problem], Answer],
) -> list[dict[str, Any]]:
    rows = list(_prevalence(data, organs))
    used_by = {problem: _belongs(data.patient, problem.train) & ~data.easy for problem in problems}
    for problem, used in used_by.items():
        place = {"label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
        rows.append(place | {"metric": "training_patients", "unit": "patients", "value": len(problem.train)})
        rows.append(place | {"metric": "training_superpatches", "unit": "superpatches", "value": int(used.sum())})
    for (protocol, problem), answer in answers.items():
        place = {"label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
        for number in np.flatnonzero(np.isfinite(answer.validation)).tolist():
            told = {"protocol": protocol, "selection": "inner validation", "metric": "validation_auroc"}
            drawn = used_by[problem] & data.known[:, number]
            sizes = {"n_patients": len(set(data.patient[drawn])), "n_superpatches": int(drawn.sum())}
            rows.append(place | told | sizes | {"organ": organs[number], "value": float(answer.validation[number])})
    at = {(protocol, p.fraction, p.draw, p.fold): answer for (protocol, p), answer in answers.items()}
    frame = predictions.to_pandas()
    both: tuple[EasyNegatives, ...] = ("out", "in")
    for protocol, fraction, easy in product(settings.protocols, sorted(set(settings.label_fractions)), both):
        common = {"protocol": protocol, "label_fraction": fraction, "easy_negatives": easy}
        chance = 0
        for cell in cells(frame, protocol, fraction, easy).cells:
            answer, organ = at[protocol, fraction, cell.draw, cell.fold], list(organs).index(cell.organ)
            chance += bool(answer.chance[organ])
            rows += [common | row for row in _cell_rows(cell, answer, organ)]
        rows.append(common | {"metric": "chance_organs", "value": chance})
    return rows


def _cell_rows(cell: Cell, answer: Answer, organ: int) -> Iterator[dict[str, Any]]:
    place = {"draw": cell.draw, "fold": cell.fold, "organ": cell.organ}
    sizes = {"n_patients": len(cell.patients), "n_superpatches": len(cell.truth)}
    for metric in METRICS:
        chosen = answer.tuned[organ] if metric == "f1_tuned" else answer.selected[organ]
        selection = "inner validation" if chosen else "fixed"
        yield place | sizes | {"metric": metric, "selection": selection, "value": cell_score(cell, metric)}
    if np.isfinite(answer.regularisation[organ]):
        selection = "inner validation" if answer.selected[organ] else "fixed"
        yield place | {"metric": "regularisation", "selection": selection, "value": float(answer.regularisation[organ])}


def _prevalence(data: _Data, organs: Sequence[str]) -> Iterator[dict[str, Any]]:
    for easy, counted in (("out", ~data.easy), ("in", np.ones_like(data.easy))):
        for number, organ in enumerate(organs):
            rows = counted & data.known[:, number]
            if rows.any():
                sizes = {"n_patients": len(set(data.patient[rows])), "n_superpatches": int(rows.sum())}
                value = float(data.truth[rows, number].mean())
                yield {"organ": organ, "easy_negatives": easy, "metric": "prevalence", "value": value} | sizes
