"""What a probe and a fine-tuned network share: who is trained on and who is tested, what is told of each test superpatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from nemesis.config import MIN_EVALUATION_PATIENTS, MIN_PATIENTS_FOR_SELECTION
from nemesis.data.pools import folds, label_subsets
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.cells import METRICS, Cell, EasyNegatives, cell_score, cells

INNER_FOLDS = 5
CHANCE = 0.5

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
class Data:
    """The table of evaluation superpatches as arrays."""

    truth: Bools  # (N, organs)
    known: Bools  # (N, organs)
    easy: Bools  # (N,)
    patient: NDArray[np.object_]  # (N,)


def data_of(table: pd.DataFrame, organs: Sequence[str]) -> Data:
    """See :class:`Data`; ``table`` is that of :func:`nemesis.data.superpatches.evaluation_superpatches`."""
    names = (table["dataset"].astype(str) + "/" + table["patient"].astype(str)).to_numpy(object)
    labels = table[list(organs)].to_numpy()
    return Data(labels == 1, labels >= 0, table["easy"].to_numpy(bool), names)


def check_patients(patients: int) -> None:
    """The check of what planning cannot know: in how many patients the probed organs turned out to be drawn.

    Raises:
        NemesisError: fewer patients than a probe needs.
    """
    if patients < MIN_EVALUATION_PATIENTS:
        what = f"the probe needs {MIN_EVALUATION_PATIENTS} evaluation patients with labels of its organs, there are {patients}"
        raise NemesisError(Fault("pools.evaluation", what, "Add labelled patients to the evaluation pool"))


def problems(data: Data, wanted: int, seed: int, fractions: Sequence[float], draws: int) -> list[Problem]:
    """Every (fold, label fraction, draw), by fraction, draw and fold.

    Args:
        data: of whose patients those count in whom any organ was drawn.
        wanted: how many folds; fewer where there are not as many patients.
        seed: of the folds and of the draws.
        fractions: shares of a fold's training patients.
        draws: repetitions of each share below 1.

    Raises:
        NemesisError: fewer than 3 such patients.
    """
    patients = sorted(set(data.patient[data.known.any(1)]))
    check_patients(len(patients))
    k = min(wanted, len(patients))
    if k < wanted:
        print(f"{k} folds, not {wanted}, as only {len(patients)} patients have labels of the organs", flush=True)
    found = []
    for fold, test in enumerate(folds(patients, k, seed)):
        train = [patient for patient in patients if patient not in set(test)]
        for draw in range(draws):
            subsets = label_subsets(train, fractions, draw, seed)
            for fraction in sorted(set(fractions)):
                if fraction < 1 or draw == 0:  # every draw of all patients is the same
                    found.append(Problem(fraction, draw, fold, frozenset(subsets[fraction]), frozenset(test)))
    return sorted(found, key=lambda p: (p.fraction, p.draw, p.fold))


def inner_folds(train: frozenset[str], seed: int) -> list[frozenset[str]]:
    """Who validates in each inner fold of training patients; none where there are too few of them to choose by."""
    if len(train) < MIN_PATIENTS_FOR_SELECTION:
        return []
    return [frozenset(held_out) for held_out in folds(sorted(train), INNER_FOLDS, seed)]


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


def both_classes(truth: Bools, known: Bools) -> Bools:
    """(organs,): the known rows hold both classes."""
    return np.logical_and((truth & known).any(0), (~truth & known).any(0))


def mean_auroc(score: NDArray[np.float32], truth: Bools, known: Bools) -> float:
    """Over the organs whose known rows hold both classes; NaN where none's do. All are (n, organs)."""
    told = np.flatnonzero(both_classes(truth, known))
    each = [auroc(truth[known[:, k], k], score[known[:, k], k].astype(np.float64)) for k in told]
    return float(np.mean(each)) if each else float("nan")


def belongs(patient: NDArray[np.object_], group: frozenset[str]) -> Bools:
    """(n,): which of these patients are in the group."""
    return np.fromiter((name in group for name in patient), bool, len(patient))


def predictions_of(data: Data, organs: Sequence[str], problem: Problem, protocol: str, answer: Answer) -> pa.Table:
    """What is predicted of every test superpatch of a problem, as :data:`PREDICTIONS`."""
    test = np.flatnonzero(belongs(data.patient, problem.test))
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


def rows_of(
    predictions: pa.Table, data: Data, organs: Sequence[str], answers: Mapping[tuple[str, Problem], Answer]
) -> list[dict[str, Any]]:
    """The rows of these predictions; see :func:`nemesis.evaluation.probe.probe`. ``answers`` are by protocol and problem."""
    rows: list[dict[str, Any]] = []
    used_by = {problem: belongs(data.patient, problem.train) & ~data.easy for _, problem in answers}
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
    protocols = dict.fromkeys(protocol for protocol, _ in answers)
    fractions = sorted({problem.fraction for _, problem in answers})
    for protocol, fraction, easy in product(protocols, fractions, both):
        common = {"protocol": protocol, "label_fraction": fraction, "easy_negatives": easy}
        chance = 0
        for cell in cells(frame, protocol, fraction, easy).cells:
            answer, organ = at[protocol, fraction, cell.draw, cell.fold], list(organs).index(cell.organ)
            chance += bool(answer.chance[organ])
            rows += [common | row for row in _cell_rows(cell, answer, organ)]
        rows.append(common | {"metric": "chance_organs", "value": chance})
    return rows


def training_rows(data: Data, problem: Problem) -> Iterator[dict[str, Any]]:
    """How many patients and superpatches a problem's labels are of."""
    place = {"label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
    used = int((belongs(data.patient, problem.train) & ~data.easy).sum())
    yield place | {"metric": "training_patients", "unit": "patients", "value": len(problem.train)}
    yield place | {"metric": "training_superpatches", "unit": "superpatches", "value": used}


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


def prevalence(data: Data, organs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Per organ the share of superpatches that hold it."""
    for easy, counted in (("out", ~data.easy), ("in", np.ones_like(data.easy))):
        for number, organ in enumerate(organs):
            rows = counted & data.known[:, number]
            if rows.any():
                sizes = {"n_patients": len(set(data.patient[rows])), "n_superpatches": int(rows.sum())}
                value = float(data.truth[rows, number].mean())
                yield {"organ": organ, "easy_negatives": easy, "metric": "prevalence", "value": value} | sizes
