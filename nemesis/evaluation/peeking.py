"""What choosing an epoch on the test set is worth: the head of the released evaluation, its best epoch chosen twice.

The released code trains a head (LayerNorm and a linear layer, AdamW at 1e-3, 100 epochs) and reports the epoch that is best on
the scans it is tested on. Here one and the same training, on features computed once, is read at two epochs: the best in inner
validation (of an inner fold of the training patients, who do not train; with fewer than five of them the last epoch), and the
best on the test patients, which nobody may know. Between the two lies what peeking is worth; neither is a figure of any other
table (:func:`nemesis.report.collect.collect` keeps them apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from nemesis.config import Probe
from nemesis.evaluation import OPTIMISTIC, RELEASED_HEAD, RELEASED_HEAD_PEEKED
from nemesis.evaluation.presence import masked_bce
from nemesis.evaluation.problems import (
    CHANCE,
    Answer,
    Bools,
    Data,
    Problem,
    belongs,
    both_classes,
    data_of,
    inner_folds,
    mean_auroc,
    predictions_of,
    problems,
    rows_of,
)

EPOCHS, LEARNING_RATE = 100, 1e-3  # of the released code
BATCH = 64  # superpatches; of what the released batches hold, whole scans, cached features know nothing


def peek(
    features: NDArray[np.float32], table: pd.DataFrame, organs: Sequence[str], settings: Probe
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Train the released head in every fold at the largest share of labels, and read it at both epochs.

    Args:
        features: (N, F), one row per row of ``table``.
        table: see :func:`nemesis.evaluation.probe.probe`, as ``organs`` and ``settings``.

    Returns:
        Predictions (:data:`nemesis.evaluation.problems.PREDICTIONS`) under the protocols ``linear_official``, by the epoch of
        inner validation, and ``linear_official_test``, by the test patients'. Rows, all of the protocol ``linear_official``,
        whose ``selection`` tells them apart: every figure of :func:`nemesis.evaluation.problems.rows_of`, and ``epoch``.

    Raises:
        NemesisError: fewer than 3 patients with labels of these organs.
    """
    data = data_of(table, organs)
    parts: dict[str, list[pa.Table]] = {RELEASED_HEAD: [], RELEASED_HEAD_PEEKED: []}
    answers: dict[tuple[str, Problem], Answer] = {}
    rows: list[dict[str, Any]] = []
    for problem in problems(data, settings.folds, settings.split_seed, [max(settings.label_fractions)], settings.draws):
        held_out = inner_folds(problem.train, settings.split_seed)
        validators = held_out[0] if held_out else frozenset()
        train, validation = (
            np.flatnonzero(belongs(data.patient, group) & ~data.easy) for group in (problem.train - validators, validators)
        )
        test = np.flatnonzero(belongs(data.patient, problem.test))
        scores = _trained(features, data, train, settings.split_seed + problem.fold)
        judged = {RELEASED_HEAD: validation, RELEASED_HEAD_PEEKED: test[~data.easy[test]]}
        for protocol, patients in judged.items():
            each = [mean_auroc(score[patients], data.truth[patients], data.known[patients]) for score in scores]
            chosen = not np.isnan(each).all()
            epoch = int(np.nanargmax(each)) if chosen else EPOCHS - 1
            answer = _answer(scores[epoch][test], chosen, ~both_classes(data.truth[train], data.known[train]))
            answers[protocol, problem] = answer
            parts[protocol].append(predictions_of(data, organs, problem, protocol, answer))
            place = {"protocol": protocol, "label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
            selection = "inner validation" if chosen else "fixed"
            rows.append(place | {"selection": selection, "metric": "epoch", "unit": "epochs", "value": epoch + 1})
    tables = [part for protocol in parts for part in parts[protocol]]
    predictions = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
    dataset = "+".join(sorted(table["dataset"].astype(str).unique()))
    rows += rows_of(predictions, data, organs, answers)
    told = {RELEASED_HEAD: {}, RELEASED_HEAD_PEEKED: {"protocol": RELEASED_HEAD, "selection": OPTIMISTIC}}
    return predictions, [{"dataset": dataset} | row | told[row["protocol"]] for row in rows]


def _trained(features: NDArray[np.float32], data: Data, train: NDArray[np.intp], seed: int) -> list[NDArray[np.float32]]:
    """After each epoch what the head says of every superpatch (N, organs), in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.LayerNorm(features.shape[1]), nn.Linear(features.shape[1], data.truth.shape[1]))
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE)
        x, truth, known = (torch.from_numpy(np.ascontiguousarray(part)) for part in (features, data.truth, data.known))
        places, said = torch.from_numpy(train), []
        for _ in range(EPOCHS):
            for batch in torch.split(places[torch.randperm(len(places))], BATCH):
                loss = masked_bce(head(x[batch]), truth[batch], known[batch])
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
            with torch.no_grad():
                said.append(head(x).sigmoid().numpy())
    return said


def _answer(score: NDArray[np.float32], chosen: bool, lacking: Bools) -> Answer:
    organs = score.shape[1]
    nothing = np.full(organs, np.nan)
    return Answer(
        np.where(lacking, np.float32(CHANCE), score), np.full(organs, CHANCE, np.float32), np.full(organs, chosen),
        np.zeros(organs, bool), lacking, nothing, nothing,
    )  # fmt: skip
