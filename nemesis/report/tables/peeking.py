"""What peeking is worth: AUROC of the released head at the epoch that inner validation chooses, and at the best on the test."""

from __future__ import annotations

import pandas as pd

from nemesis.evaluation import RELEASED_HEAD, RELEASED_HEAD_PEEKED
from nemesis.evaluation.statistics import Estimate, Scores, paired_difference, summarise
from nemesis.report.collect import of_part
from nemesis.report.leakage import NOTE as LEAKAGE_NOTE
from nemesis.report.render import Table, interval, number
from nemesis.report.tables.measured import Entries, Measured
from nemesis.report.tables.pieces import (
    Record,
    configuration_note,
    counts,
    figures,
    intervals_told,
    pools_text,
    share,
    superpatches_of,
    without,
)

NAME, TITLE = "peeking", "What choosing the epoch on the test patients is worth"
ABSENT = "The released head was not trained in this experiment (`probe.protocols: [..., linear_official]`)."
DATA = ("method", "label_fraction", "honest", "optimistic", "difference")
SELECTIONS = {"honest": RELEASED_HEAD, "optimistic": RELEASED_HEAD_PEEKED}


def peeking_table(measured: Measured) -> Table:
    """One row per method."""
    spec = of_part(measured.spec, "methods")
    records: list[Record] = []
    seen: list[Estimate] = []
    for label, entries in measured.labels("methods").items():
        sides = {name: _scores(measured, entries, protocol) for name, protocol in SELECTIONS.items()}
        if not sides["honest"]:
            continue
        fraction = float(sides["honest"][0].predictions["label_fraction"].max())
        asked = (RELEASED_HEAD, fraction)
        options = {"resamples": measured.spec["bootstrap"], "seed": measured.spec["seed"]}
        found = {name: summarise(runs, *asked, **options) for name, runs in sides.items()}
        gap = None
        if found["honest"].point is not None:
            gap = paired_difference(sides["optimistic"], sides["honest"], *asked, **options)
        record: Record = {"method": label, "label_fraction": fraction, "leakage": measured.leakage(entries)}
        for name, estimate in found.items():
            record |= figures(name, estimate)
        records.append(record | figures("difference", gap) | counts(found["honest"]) | {"seeds": len(entries)})
        seen.append(found["honest"])
    columns = (
        "method", "labels", "leakage", "AUROC, epoch by inner validation [95 % CI]", "AUROC, epoch by test patients (optimistic) "
        "[95 % CI]", "gained by peeking [95 % CI]", "patients", "superpatches", "seeds",
    )  # fmt: skip
    if not records:
        return without(NAME, TITLE, ABSENT, columns, DATA, spec, 3)
    printed = [
        (
            r["method"], share(r["label_fraction"]), r["leakage"], interval(r, "honest", 3), interval(r, "optimistic", 3),
            interval(r, "difference", 3, sign=True), number(r["n_patients"], 0), number(r["n_superpatches"], 0),
            number(r["seeds"], 0),
        )
        for r in records
    ]  # fmt: skip
    caption = (
        f"The head of the released evaluation (LayerNorm and a linear layer) on frozen features of {superpatches_of(spec)}: one "
        "training, read at the epoch that inner validation chooses, and at the one with the highest AUROC in the test patients. "
        f"{pools_text(spec)}"
    )
    notes = [
        "No figure of this table stands in another: an epoch chosen on the patients it is tested on tells nothing of others.",
        intervals_told(spec, seen),
        LEAKAGE_NOTE,
        configuration_note(spec),
    ]
    return Table(NAME, TITLE, caption, columns, printed, [n for n in notes if n], pd.DataFrame(records), text_columns=3)


def _scores(measured: Measured, entries: Entries, protocol: str) -> list[Scores]:
    """Of each run that has them, under one name, so that both selections compare."""
    frames = [measured.peeked[entry["run"]].predictions for entry in entries]
    found = [frame[frame["protocol"] == protocol] for frame in frames if len(frame)]
    return [Scores(frame.assign(protocol=RELEASED_HEAD)) for frame in found]
