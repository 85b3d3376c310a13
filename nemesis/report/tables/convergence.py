"""How fast fine-tuning gets there: what every look at the inner validation said, with and without pretraining."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nemesis.finetuning import ARMS, protocol_of
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import MISSING, Table, number
from nemesis.report.tables.controls import SCORES
from nemesis.report.tables.finetuned import tuning_notes
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.pieces import Record, configuration_note, share, without
from nemesis.report.tables.segmentation import started

NAME, TITLE = "convergence", "Convergence of fine-tuning"
ABSENT = "No fine-tuning of this experiment looked at an inner validation."
DATA = ("task", "method", "arm", "label_fraction", "step", "validation")


def convergence_table(measured: Measured) -> Table:
    """In the CSV a line per look; printed one row per task, method, arm and share of labels."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    printed: list[list[str]] = []
    for task, score in SCORES.items():
        for label, entries in measured.labels("methods").items():
            curves = {arm: _curves(measured.looks(entries, protocol_of(task, arm))) for arm in ARMS}
            for fraction in sorted({f for curve in curves.values() for f in curve.index.unique("label_fraction")}):
                here = {arm: c.xs(fraction) for arm, c in curves.items() if fraction in c.index.unique("label_fraction")}
                goal = float(here["scratch"]["mean"].max()) if "scratch" in here else None
                for arm, curve in here.items():
                    reached = None if goal is None else _first(curve["mean"], goal)
                    place: Record = {"task": task, "method": label, "arm": arm, "label_fraction": fraction}
                    weights, place["leakage"] = started(measured, entries, arm)
                    records += [
                        place | {"step": step, "validation": look["mean"], "validation_lowest": look["min"]}
                        | {"validation_highest": look["max"], "trainings": look["size"], "reaches_scratch_at": reached}
                        for step, look in curve.iterrows()
                    ]  # fmt: skip
                    told = ", ".join(f"{step}: {value:.3f}" for step, value in curve["mean"].items())
                    best = f"{curve['mean'].max():.3f} at {curve['mean'].idxmax()}"
                    when = MISSING if goal is None else "never" if reached is None else number(reached, 0)
                    count = number(curve["size"].max(), 0)
                    named = [score, label, weights, share(fraction), place["leakage"] or MISSING]
                    printed.append([*named, told, best, when, count])
    columns = (
        "task", "method", "weights", "labels", "leakage", "step: inner validation", "best",
        "step at which scratch's best is reached", "trainings",
    )  # fmt: skip
    if not records:
        return without(NAME, TITLE, ABSENT, columns, DATA, spec, 6)
    caption = (
        "What the looks at the inner validation said while networks were fine-tuned, at the learning rate that was taken; means "
        "over folds, draws and seeds."
    )
    notes = [
        "Validation patients are training patients who do not train; no test patient has a part in this table. It is one figure "
        "per training and look, of few patients: no interval is given; in the CSV stand the lowest and the highest of the "
        "trainings.",
        "The step at which from scratch's best is reached is the first look whose mean is as high as the best mean of the same "
        "network from scratch: pretraining speeds fine-tuning up where it is smaller than from scratch's own.",
        *tuning_notes(measured),
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    return Table(NAME, TITLE, caption, columns, printed, notes, pd.DataFrame(records), text_columns=6)


def _curves(looks: pd.DataFrame) -> pd.DataFrame:
    """By label fraction and step: mean, min, max and number of the trainings that said something (size counts all)."""
    return looks.groupby(["label_fraction", "step"])["value"].agg(["mean", "min", "max", "size"])


def _first(curve: pd.Series[Any], goal: float) -> int | None:
    reached = curve.index[curve >= goal]
    return int(reached[0]) if len(reached) else None
