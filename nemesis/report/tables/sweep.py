"""Embedding width × mask ratio: NEMESIS Table V, of a grid or of an adaptive search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from nemesis.evaluation.statistics import Estimate
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.published import NEMESIS, Paper, load_published, published_note
from nemesis.report.render import MISSING, Table, absent, interval, number
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import (
    MEASURED,
    NOT_RUN,
    NOT_SCORABLE,
    Record,
    beside,
    configuration_note,
    counts,
    figures,
    interval_notes,
    measured_text,
    organs_note,
    partly_note,
    percent,
    pools_text,
    share,
    sizes_text,
    superpatches_of,
    without,
)

NAME, TITLE = "sweep", "Embedding width and mask ratio (NEMESIS Table V)"
PUBLISHED_ON = ("BTCV",)
TOLD = ("state", "steps", "validation_auroc", "run", "effective_mask_ratio")  # of a trial
DATA = ("embed_dim", "mask_ratio", "status", "auroc", "validation_auroc")
TOLD_BEST, BEST_BY_AUROC = (768, 0.75), (384, 0.5)  # in the paper: by its text, by its table


@dataclass(frozen=True)
class Point:
    """A cell of the grid, or a trial of the search."""

    embed_dim: int
    mask_ratio: float
    entries: Entries
    trial: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the notes call it."""
        return f"{self.embed_dim} / {self.mask_ratio:g}"


@dataclass(frozen=True)
class Nested:
    """Selection inside every fold: its test figure, and what each fold's training patients chose."""

    auroc: float
    chosen: Mapping[int, str]  # fold → name of the point


def sweep_table(measured: Measured) -> Table:
    """One row per cell or trial; which of them inner validation chooses, and what choosing is worth."""
    spec, fraction = measured.spec, measured.fractions[-1]
    section = spec["config"].get("sweep")
    searched = section is not None and section["search"] is not None
    points = _trials(measured) if searched else _cells(measured)
    if not points:
        sentence = "No trial of the adaptive search is known." if searched else "This experiment has no sweep."
        columns = ("embedding width", "mask ratio r", "AUROC", "validation AUROC")
        return without(NAME, TITLE, sentence, columns, DATA, spec, 0)
    papers = {(row["embed_dim"], row["mask_ratio"]): row for row in load_published()["table5_hyperparameters"]}
    aurocs = [_auroc(measured, point, fraction) for point in points]
    records = []
    for point, auroc in zip(points, aurocs, strict=True):
        paper = papers.get((point.embed_dim, point.mask_ratio), {})
        records.append(_record(measured, point, auroc, paper, fraction))
    chosen = _best([r["validation_auroc"] if r.get("state", "complete") == "complete" else None for r in records])
    best = None if searched else _best([r["auroc"] for r in records])
    for place, record in enumerate(records):
        record |= {"chosen_by_validation": place == chosen, "best_on_test": place == best}
    done = {(point.embed_dim, point.mask_ratio) for point in points}
    for (embed_dim, mask_ratio), paper in papers.items():
        if (embed_dim, mask_ratio) not in done:
            nothing = dict.fromkeys(records[0]) | {"embed_dim": embed_dim, "mask_ratio": mask_ratio, "status": NOT_RUN}
            records.append(nothing | {"published_auroc": paper["auroc"], "published_f1": paper["f1"]})
    notes = _search_notes() if searched else _choice_notes(measured, points, records, chosen, best, fraction)
    return _printed(measured, records, [auroc for auroc in aurocs if auroc], searched, notes)


def _cells(measured: Measured) -> list[Point]:
    labels = measured.labels("sweep").values()
    return [Point(entries[0]["embed_dim"], entries[0]["mask_ratio"], entries) for entries in labels]


def _trials(measured: Measured) -> list[Point]:
    """By number; the best one with its runs, where they were evaluated."""
    if measured.trials is None or measured.trials.empty:
        return []
    trials = measured.trials.sort_values("number").to_dict("records")
    best = _best([trial["validation_auroc"] if trial["state"] == "complete" else None for trial in trials])
    evaluated = [entry for entries in measured.labels("sweep").values() for entry in entries]
    points = []
    for place, trial in enumerate(trials):
        told = {name: None if absent(trial[name]) else trial[name] for name in TOLD}
        at = (int(trial["embed_dim"]), round(float(trial["mask_ratio"]), 6))
        entries = [e for e in evaluated if place == best and (e["embed_dim"], round(e["mask_ratio"], 6)) == at]
        points.append(Point(*at, entries, {"trial": int(trial["number"]), **told}))
    return points


def _auroc(measured: Measured, point: Point, fraction: float) -> Estimate | None:
    return measured.score(point.entries, "linear", fraction) if point.entries else None


def _record(measured: Measured, point: Point, auroc: Estimate | None, paper: Paper, fraction: float) -> Record:
    """A line; of a trial that was not evaluated little more than how much it hides."""
    record: Record = {"embed_dim": point.embed_dim, "mask_ratio": point.mask_ratio, **point.trial, "status": NOT_RUN}
    f1 = psnr = None
    hidden = point.trial.get("effective_mask_ratio")
    record["leakage"] = measured.leakage(point.entries) if point.entries else None
    if auroc is not None:
        record["status"] = MEASURED if auroc.point is not None else NOT_SCORABLE
        f1 = measured.score(point.entries, "linear", fraction, "f1")
        psnr = measured.reconstructed(point.entries, "psnr_masked")
        hidden = measured.reconstructed(point.entries, "effective_mask_ratio").point
    record["effective_mask_ratio"] = hidden
    for name, estimate in (("auroc", auroc), ("f1", f1)):
        record |= figures(name, estimate) | beside(name, estimate.point if estimate else None, paper.get(name), fraction == 1)
    if not point.trial:
        record["validation_auroc"] = _mean(_validation(measured, point.entries, fraction)["value"])
    record |= figures("psnr_masked", psnr)
    record["parameters"] = _mean(measured.rows_of(point.entries, metric="parameters")["value"])
    sizes = counts(auroc) if auroc else dict.fromkeys(("n_patients", "n_superpatches", "n_cells"))
    return record | sizes | {"seeds": len(point.entries) or None}


def _validation(measured: Measured, entries: Entries, fraction: float) -> pd.DataFrame:
    return measured.rows_of(entries, metric="validation_auroc", protocol="linear", label_fraction=fraction)


def nested_selection(measured: Measured, points: Sequence[Point], fraction: float) -> Nested | None:
    """In every fold the point with the best validation AUROC of that fold's training patients, scored on its test patients.

    Means over seeds, draws and organs, from the rows; None where a fold has no validation.
    """
    validation, test = {}, {}
    for point in points:
        validation[point.name] = _validation(measured, point.entries, fraction).groupby("fold")["value"].mean()
        scored = measured.rows_of(point.entries, metric="auroc", protocol="linear", label_fraction=fraction, easy_negatives="out")
        test[point.name] = scored.groupby(["fold", "organ"])["value"].mean()
    by_fold, by_cell = pd.DataFrame(validation), pd.DataFrame(test)
    folds = sorted({fold for fold, _ in by_cell.index})
    if not folds or not set(folds) <= set(by_fold.dropna().index):
        return None
    chosen = {fold: max(by_fold.columns, key=lambda name: by_fold.loc[fold, name]) for fold in folds}
    values = [by_cell.loc[(fold, organ), chosen[fold]] for fold, organ in by_cell.index]
    return Nested(float(np.mean(values)), {int(fold): name for fold, name in chosen.items()})


def _best(values: Sequence[float | None]) -> int | None:
    """The place of the largest; of equals the first."""
    known = [(value, -place) for place, value in enumerate(values) if not absent(value)]
    return -max(known)[1] if known else None


def _mean(values: pd.Series[float]) -> float | None:
    return float(values.mean()) if len(values) else None


def _choice_notes(
    measured: Measured, points: Sequence[Point], records: Sequence[Record], chosen: int | None, best: int | None, fraction: float
) -> list[str]:
    if chosen is None:
        notes = ["Too few training patients for inner validation: it chooses no cell."]
    else:
        notes = [
            "Validation AUROC: inner cross-validation over each fold's training patients, mean over folds and organs; the cell "
            "with the best one is marked as chosen by it."
        ]
    if (nested := nested_selection(measured, points, fraction)) is not None:
        told = ", ".join(f"fold {fold}: {name}" for fold, name in nested.chosen.items())
        notes.append(
            "What choosing is worth (nested selection): in every fold the cell with the best validation AUROC of that fold's "
            f"training patients, scored on that fold's test patients, reaches AUROC {number(nested.auroc, 3)} (E / r: {told})."
        )
    if best is not None:
        same = ", the one that inner validation chooses, too" if best == chosen else ""
        notes.append(
            f"Best on the test patients: {points[best].name} (E / r), AUROC {number(records[best]['auroc'], 3)}{same}; to report "
            "the best of the cells by their test figures would be optimistic."
        )
    return notes


def _search_notes() -> list[str]:
    return [
        "The search saw validation AUROC alone (inner cross-validation over each fold's training patients, mean over folds and "
        "organs); that of a pruned trial is of the step at which it was given up. The best complete trial is chosen. No fold's "
        "score looks at its test patients, but who is tested in one fold may validate in all others: the best trial's test "
        "figures are of patients who had a say in the choice, hence optimistic.",
    ]


def _printed(
    measured: Measured, records: Sequence[Record], seen: Sequence[Estimate], searched: bool, choice: Sequence[str]
) -> Table:
    spec, fraction = measured.spec, measured.fractions[-1]
    columns = [
        "embedding width E", "mask ratio r", "hidden", "AUROC [95 % CI]", "published", "Δ published", "F1 at 0.5", "published F1",
        "validation AUROC", "PSNR masked", "parameters (M)", "seeds", "leakage",
        "chosen by",
    ]  # fmt: skip
    printed = []
    for r in records:
        ways = (("validation", r["chosen_by_validation"]), ("test (optimistic)", r["best_on_test"]))
        line = [
            number(r["embed_dim"], 0), f"{r['mask_ratio']:g}", percent(r["effective_mask_ratio"]),
            MISSING if r.get("state") and r["status"] == NOT_RUN else measured_text(r, interval(r, "auroc", 3)),
            number(r["published_auroc"], 4), number(r["auroc_minus_published"], 3, sign=True),
            number(r["f1"], 3), number(r["published_f1"], 3), number(r["validation_auroc"], 3), number(r["psnr_masked"], 2),
            number(None if r["parameters"] is None else r["parameters"] / 1e6, 2), number(r["seeds"], 0),
            r["leakage"] or MISSING, ", ".join(name for name, holds in ways if holds),
        ]  # fmt: skip
        printed.append([number(r["trial"], 0), r["state"] or NOT_RUN, number(r["steps"], 0), *line] if searched else line)
    told = [_search_text(records)] if searched else []
    told += [sizes_text(seen), measured.training("sweep")] if seen else []
    caption = (
        f"{spec['config']['sweep']['method']} at other widths and mask ratios: organ presence by the linear probe at "
        f"{share(fraction)} of the labels, in {superpatches_of(spec)}. {' '.join(told)} {pools_text(spec)}"
    )
    rows = measured.rows_of([e for own in measured.labels("sweep").values() for e in own])
    notes = [
        published_note(spec, NEMESIS, PUBLISHED_ON, "the same width and mask ratio"),
        *partly_note(fraction),
        "The mask ratio r hides that share within planes and along the axis alike, 1 − (1 − r)² of the tokens in all (the paper "
        "does not say which of the two it means). The more is hidden, the harder is PSNR masked: it compares no two ratios.",
        *choice,
        f"The paper's text calls {TOLD_BEST[0]} / {TOLD_BEST[1]:g} best; by AUROC its own table's best is "
        f"{BEST_BY_AUROC[0]} / {BEST_BY_AUROC[1]:g}.",
        *([organs_note(spec, rows, fraction), *interval_notes(spec, seen)] if seen else []),
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    if searched:
        columns = ["trial", "state", "steps", *columns]
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=2 if searched else 0)


def _search_text(records: Sequence[Record]) -> str:
    trials = [record for record in records if record["trial"] is not None]
    told = Counter(record["state"] for record in trials)
    steps = sorted({int(r["steps"]) for r in trials if r["state"] == "complete" and r["steps"] is not None})
    full = f" of {' or '.join(str(n) for n in steps)} steps" if steps else ""
    said = ", ".join(f"{n} trial{'s' * (n > 1)} {state}" for state, n in told.items())
    return f"An adaptive search{full}: {said}."
