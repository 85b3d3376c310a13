"""The study of a grid, rebuilt from rows; and how the report learns of the best run of an adaptive sweep."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
from report_experiment import EMBED_DIMS, MASK_RATIOS, make_experiment

from nemesis.cli import read_report_spec
from nemesis.errors import NemesisError
from nemesis.report.collect import collect, collected_spec, of_part, with_best
from nemesis.sweep.study import STUDY, rebuild_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Specification and collected folder of the small experiment."""
    root = tmp_path_factory.mktemp("finished")
    spec = make_experiment(root)
    collect(spec, root / "collected")
    return spec, root / "collected"


def told(path):
    """What the trials of a study say, but for the time at which they were written down."""
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")
    return [(t.number, t.state.name, t.params, t.distributions, t.value, t.user_attrs, t.intermediate_values)
            for t in study.trials]  # fmt: skip


def with_rows(collected, folder, change):
    folder.mkdir()
    rows = pd.read_parquet(collected / "rows.parquet")
    change(rows).to_parquet(folder / "rows.parquet")
    return folder


def mean(rows, runs, metric, **where):
    rows = rows[rows["run"].isin(runs) & (rows["metric"] == metric)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["value"].mean()


def test_a_trial_per_cell_in_the_order_of_the_configuration(finished, tmp_path):
    spec, collected = finished
    rebuild_study(spec, collected, tmp_path / "sweep" / "study.db")
    trials = told(tmp_path / "sweep" / "study.db")
    points = [{"embed_dim": dim, "mask_ratio": ratio} for dim in EMBED_DIMS for ratio in MASK_RATIOS]
    assert [params for _, _, params, *_ in trials] == points
    assert [number for number, *_ in trials] == [0, 1, 2, 3] and {state for _, state, *_ in trials} == {"COMPLETE"}
    rows = pd.read_parquet(collected / "rows.parquet")
    for (_, _, params, distributions, value, attributes, _), _ in zip(trials, points, strict=True):
        runs = [
            e["run"] for e in of_part(spec, "sweep")["runs"] if e["label"] == f"E {params['embed_dim']}, r {params['mask_ratio']}"
        ]
        assert attributes["runs"] == runs
        assert value == pytest.approx(mean(rows, runs, "validation_auroc", protocol="linear", label_fraction=1.0), abs=1e-12)
        test = mean(rows, runs, "auroc", protocol="linear", label_fraction=1.0, easy_negatives="out")
        assert attributes["test_auroc"] == pytest.approx(test, abs=1e-12)
        hidden = {"region": "masked", "scope": "superpatch", "easy_negatives": "out", "input_masked": True}
        assert attributes["psnr_masked"] == pytest.approx(mean(rows, runs, "psnr", **hidden), abs=1e-12)
        assert distributions["embed_dim"].choices == EMBED_DIMS
        assert (distributions["mask_ratio"].low, distributions["mask_ratio"].high) == (min(MASK_RATIOS), max(MASK_RATIOS))


def test_the_same_rows_change_nothing_and_others_replace_the_study(finished, tmp_path):
    spec, collected = finished
    out = tmp_path / "study.db"
    rebuild_study(spec, collected, out)
    first = told(out)
    rebuild_study(spec, collected, out)
    assert told(out) == first
    rebuild_study(spec, with_rows(collected, tmp_path / "halved", lambda rows: rows.assign(value=rows["value"] / 2)), out)
    assert [value for *_, value, _, _ in told(out)] == pytest.approx([value / 2 for *_, value, _, _ in first])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["study.db"]


def test_seeds_are_averaged_and_fewer_labels_of_a_shared_run_do_not_count(finished, tmp_path):
    spec, collected = finished
    (first, *_) = of_part(spec, "sweep")["runs"]
    both = spec | {"runs": [*spec["runs"], first | {"run": "nemesis-s1-000000000000", "seed": 1}]}

    def another_seed(rows):
        other = rows[rows["run"] == first["run"]].assign(run="nemesis-s1-000000000000")
        other["value"] += 0.1
        fewer = rows[rows["run"] == first["run"]].assign(label_fraction=0.25, value=0.0)
        return pd.concat([rows, other, fewer])

    rebuild_study(spec, collected, tmp_path / "one.db")
    rebuild_study(both, with_rows(collected, tmp_path / "more", another_seed), tmp_path / "two.db")
    (one, *_), (two, *others) = told(tmp_path / "one.db"), told(tmp_path / "two.db")
    assert two[4] == pytest.approx(one[4] + 0.05) and two[5]["runs"] == [first["run"], "nemesis-s1-000000000000"]
    assert len(others) == 3


def test_a_cell_that_could_not_be_validated_is_a_failed_trial_with_its_test_figures(finished, tmp_path):
    spec, collected = finished
    unvalidated = with_rows(collected, tmp_path / "no", lambda rows: rows[rows["metric"] != "validation_auroc"])
    rebuild_study(spec, unvalidated, tmp_path / "study.db")
    assert {(state, value) for _, state, _, _, value, *_ in told(tmp_path / "study.db")} == {("FAIL", None)}
    assert all(attributes["test_auroc"] > 0 for *_, attributes, _ in told(tmp_path / "study.db"))


# ------------------------------------------------------------------------------------------------------- adaptive sweep


def searched(spec, root, **best):
    """The specification as an adaptive sweep leaves it: without cells, with a best run that no plan could know."""
    *_, cell = of_part(spec, "sweep")["runs"]
    folder = root / "sweep"
    folder.mkdir()
    (folder / "best.json").write_text(json.dumps(cell | {"trial": 2, "validation_auroc": 0.7} | best))
    pd.DataFrame({"number": [0, 1, 2]}).to_parquet(folder / "trials.parquet")
    kept = [entry for entry in spec["runs"] if entry["part"] != "sweep"]
    return spec | {"runs": kept, "search": str(folder)}, cell


def test_the_report_collects_the_best_run_and_the_trials(finished, tmp_path):
    spec, cell = searched(finished[0], tmp_path)
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(spec))
    full = read_report_spec(str(path))
    collect(full, tmp_path / "collected")
    runs = pd.read_parquet(tmp_path / "collected" / "runs.parquet")
    assert runs.loc[runs["part"] == "sweep", ["run", "label"]].values.tolist() == [[cell["run"], cell["label"]]]
    rows = pd.read_parquet(tmp_path / "collected" / "rows.parquet")
    assert (rows["run"] == cell["run"]).any()
    assert pd.read_parquet(tmp_path / "collected" / "trials.parquet")["number"].tolist() == [0, 1, 2]
    assert read_report_spec(str(path), tmp_path / "collected") == collected_spec(tmp_path / "collected") == full


def test_a_best_run_that_another_part_asks_for_keeps_the_evaluation_of_that_part(finished, tmp_path):
    method = finished[0]["runs"][0]
    spec, _ = searched(finished[0], tmp_path, run=method["run"], evaluation=str(tmp_path / "sweep" / "best"))
    best = with_best(spec)["runs"][-1]
    assert best["part"] == "sweep" and best["evaluation"] == method["evaluation"]


def test_without_a_search_nothing_is_added_and_an_unfinished_one_is_told(finished, tmp_path):
    assert with_best(finished[0]) == finished[0]
    spec, _ = searched(finished[0], tmp_path)
    (Path(spec["search"]) / "best.json").unlink()
    with pytest.raises(NemesisError, match=r"best\.json.*Run the workflow again"):
        with_best(spec)
