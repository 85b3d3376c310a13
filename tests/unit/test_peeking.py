"""Peeking: one training read at two epochs, worth something where nothing can be learnt, and in no table but its own."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_probe import ORGANS, cohort, small

from nemesis.config import Probe
from nemesis.evaluation.peeking import peek
from nemesis.evaluation.statistics import Scores, paired_difference
from nemesis.report.collect import collect
from nemesis.report.tables import read_measured, tables

HEADS = ["linear_official", "linear_official_test"]


def auroc_of(rows: list[dict[str, Any]]) -> pd.Series:
    frame = pd.DataFrame(rows)
    assert set(frame["protocol"]) == {"linear_official"}
    scored = frame[(frame["metric"] == "auroc") & (frame["easy_negatives"] == "out")]
    return scored.groupby(["selection", "fold"])["value"].mean()


def test_the_best_epoch_on_test_is_never_worse_and_flatters_features_that_hold_nothing() -> None:
    _, table = cohort(patients=12)
    noise = np.random.default_rng(1).normal(size=(len(table), 30)).astype(np.float32)
    predictions, rows = peek(noise, table, ORGANS, small(folds=4))
    found = auroc_of(rows)
    honest, optimistic = found["inner validation"], found["test (optimistic)"]
    assert (optimistic >= honest - 1e-12).all() and optimistic.mean() > honest.mean()
    frame = predictions.to_pandas()
    assert set(frame["protocol"]) == set(HEADS) and set(frame["label_fraction"]) == {1.0}
    sides = [[Scores(frame[frame["protocol"] == head].assign(protocol="head"))] for head in HEADS]
    gap = paired_difference(sides[1], sides[0], "head", 1.0, resamples=200)
    assert gap.point == pytest.approx(optimistic.mean() - honest.mean())


def test_the_head_learns_what_features_hold_and_no_test_patient_decides_the_honest_epoch() -> None:
    features, table = cohort(patients=12)
    _, rows = peek(features, table, ORGANS, small())
    assert auroc_of(rows)["inner validation"].min() > 0.7
    # other truths of one fold's test patients change its optimistic epoch's figures, and nothing that was chosen without them
    told = pd.DataFrame(rows)
    epochs = told[told["metric"] == "epoch"].set_index(["selection", "fold"])["value"]
    predictions = peek(features, table, ORGANS, small())[0].to_pandas()
    tested = set(predictions[predictions["fold"] == 0]["patient"].astype(str).str.removeprefix("ct/"))
    other, here = table.copy(), table["patient"].isin(tested) & ~table["easy"]
    other.loc[here, ORGANS] = 1 - other.loc[here, ORGANS]
    again = pd.DataFrame(peek(features, other, ORGANS, small())[1])
    changed = again[again["metric"] == "epoch"].set_index(["selection", "fold"])["value"]
    assert changed["inner validation", 0] == epochs["inner validation", 0]
    same = peek(features, other, ORGANS, small())[0].to_pandas()
    of_fold = [f[(f["protocol"] == HEADS[0]) & (f["fold"] == 0)]["score"].to_numpy() for f in (predictions, same)]
    np.testing.assert_array_equal(*of_fold)


def test_with_too_few_patients_the_last_epoch_is_taken_and_said_to_be_fixed() -> None:
    features, table = cohort(patients=4)
    _, rows = peek(features, table, ORGANS, small())
    frame = pd.DataFrame(rows)
    epochs = frame[frame["metric"] == "epoch"]
    assert set(epochs["selection"]) == {"fixed", "test (optimistic)"}
    assert set(epochs[epochs["selection"] == "fixed"]["value"]) == {100}


def test_alone_it_probes_nothing() -> None:
    with pytest.raises(ValueError, match="linear or knn"):
        Probe(protocols=["linear_official"])


def test_every_other_table_has_the_same_bytes_with_and_without_it(report: Any, tmp_path: Path) -> None:
    spec, removed = copy.deepcopy(report.spec), 0
    for number, entry in enumerate(spec["runs"]):
        folder = tmp_path / f"evaluation{number}"
        shutil.copytree(entry["evaluation"], folder)
        entry["evaluation"] = str(folder)
        for name in ("rows.parquet", "predictions.parquet"):
            table = pq.read_table(folder / name)
            keep = [protocol not in HEADS for protocol in table["protocol"].to_pylist()]
            removed += keep.count(False)
            pq.write_table(table.filter(keep), folder / name)
    assert removed > 1000
    collect(spec, tmp_path / "collected")
    for name in ("rows", "predictions"):
        with_it, without = (pd.read_parquet(where / f"{name}.parquet") for where in (report.collected, tmp_path / "collected"))
        pd.testing.assert_frame_equal(with_it, without, check_categorical=False)
    for table in tables(read_measured(spec, tmp_path / "collected")):
        printed = {s: (report.tables / f"{table.name}{s}").read_text() for s in (".csv", ".md", ".tex", ".html")}
        same = printed == {".csv": table.csv(), ".md": table.markdown(), ".tex": table.latex(), ".html": table.html()}
        assert same == (table.name != "peeking"), table.name
        if table.name == "peeking":
            assert "The released head was not trained" in table.markdown()


def test_the_table_sets_both_beside_each_other(report: Any) -> None:
    table = next(t for t in tables(read_measured(report.spec, report.collected)) if t.name == "peeking")
    rows = table.data.set_index("method")
    assert len(rows) == 3 and (rows["optimistic"] > rows["honest"]).all()
    gap = rows["optimistic"] - rows["honest"]
    np.testing.assert_allclose(rows["difference"], gap, atol=1e-9)
    assert (rows["difference_low"] <= gap).all() and (gap <= rows["difference_high"]).all()
