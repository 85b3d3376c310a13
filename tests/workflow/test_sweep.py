"""The sweep in the workflow: a grid's study, an adaptive search, and what they share."""

import json
import re

import optuna
import pandas as pd
import pytest
from places import CONFIG, SIZE

pytestmark = pytest.mark.workflow
STUDY, TRIALS = "results/tiny/sweep/study.db", "results/tiny/collected/trials.parquet"
SWEPT = {
    "datasets": [{"reader": "phantom", "subjects": 9, "base_spacing_mm": 12.0}],
    "pools": {"evaluation": 7},
    "probe": {**CONFIG["probe"], "folds": 5},
    "pretraining": {"steps": 40, "batch_size": 2},
    "methods": [{"name": "nemesis", "settings": {**SIZE, "decoder_depth": 1, "decoder_dim": 32}}],
}
SWEEP = {"embed_dims": [64], "mask_ratios": [0.45, 0.5]}
SEARCH = {"trials": 4, "workers": 2, "startup": 4, "rungs": [0.5]}


def blocks(done):
    """Rule → what a dry run tells of its job (the last one, where it has several)."""
    assert done.rc == 0, done.text
    return dict(re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)+)", done.text, re.MULTILINE))


def trained(place):
    return {path.parent.name: path.stat().st_mtime_ns for path in place.results.glob("runs/*/checkpoint.safetensors")}


def test_a_search_is_planned_after_the_runs_it_shares_and_before_whoever_asks_for_its_best(fresh):
    fresh.write_config(**SWEPT, sweep={**SWEEP, "search": SEARCH})
    jobs = {"ingest_scans": 1, "check_cohort": 1, "audit_pools": 1, "pretrain_method": 1, "search_sweep": 1}
    assert fresh.plan("search_sweep").jobs == jobs  # the method is a point, and trained by a job of its own
    said = blocks(fresh.plan())
    for rule in ("collect_rows", "print_tables", "draw_figures", "run_notebook", "write_page", "log_tracking"):
        assert "results/tiny/sweep/best.json" in said[rule].split("output:")[0], rule
    assert "processes=2" in said["search_sweep"]
    assert "processes=1" in blocks(fresh.snakemake("--dry-run", "search_sweep", cores=1))["search_sweep"]
    fresh.write_config(**SWEPT, sweep={**SWEEP, "search": SEARCH, "pretraining": {"steps": 30}})
    assert fresh.plan("search_sweep").jobs == {rule: 1 for rule in jobs if rule != "pretrain_method"}


def test_a_grid_is_a_study_and_a_search_over_the_same_points_trains_nothing_again(fresh):
    fresh.write_config(**SWEPT, sweep=SWEEP)
    planned = fresh.plan()
    assert planned.jobs["pretrain_method"] == 2 and planned.jobs["rebuild_study"] == 1  # a cell is the method itself
    assert "search_sweep" not in planned.jobs
    done = fresh.snakemake(STUDY)
    assert done.rc == 0, done.text
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{fresh.folder / STUDY}")
    assert [trial.params["mask_ratio"] for trial in study.trials] == [0.45, 0.5] and 0 <= study.best_value <= 1
    assert fresh.plan(STUDY).jobs == {}
    (fresh.folder / STUDY).unlink()
    assert fresh.plan(STUDY).jobs == {"rebuild_study": 1}

    before = trained(fresh)
    fresh.write_config(**SWEPT, sweep={**SWEEP, "search": SEARCH})
    assert fresh.plan(TRIALS).jobs == {"search_sweep": 1, "collect_rows": 1}
    done = fresh.snakemake(TRIALS)
    assert done.rc == 0, done.text
    assert trained(fresh) == before and len(before) == 2
    trials = pd.read_parquet(fresh.folder / TRIALS)
    assert len(trials) == 4 and set(trials["run"]) <= set(before) and set(trials["state"]) == {"complete"}
    best = json.loads((fresh.results / "tiny" / "sweep" / "best.json").read_text())
    assert best["validation_auroc"] == pytest.approx(study.best_value, abs=1e-12)
    runs = pd.read_parquet(fresh.results / "tiny" / "collected" / "runs.parquet")
    assert runs.loc[runs["part"] == "sweep", "run"].tolist() == [best["run"]]

    assert fresh.plan(TRIALS).jobs == {}
    fresh.write_config(**SWEPT, sweep={**SWEEP, "search": {**SEARCH, "workers": 1}}, device="auto", state_every=7)
    assert "search_sweep" not in fresh.plan(TRIALS).jobs
    fresh.write_config(**SWEPT, sweep={**SWEEP, "search": SEARCH})
    kept = (fresh.results / "tiny" / "sweep" / "trials.parquet").read_bytes()
    (fresh.results / "tiny" / "sweep" / "best" / "rows.parquet").unlink()
    (fresh.folder / TRIALS).unlink()
    assert fresh.plan(TRIALS).jobs == {"search_sweep": 1, "collect_rows": 1}
    done = fresh.snakemake(TRIALS)
    assert done.rc == 0 and "features from" in done.text, done.text
    assert (fresh.results / "tiny" / "sweep" / "trials.parquet").read_bytes() == kept and trained(fresh) == before

    done = fresh.snakemake("print_tables")
    assert done.rc == 0, done.text
    for lost in fresh.results.glob("runs/*/checkpoint.safetensors"):
        lost.unlink()
    best = fresh.results / "tiny" / "sweep" / "best.json"
    told = best.read_bytes()
    best.unlink()
    assert fresh.plan("print_tables").jobs == {}  # what was printed of it is there
    (fresh.results / "tiny" / "tables" / "sweep.csv").unlink()
    jobs = {"pretrain_method": 1, "search_sweep": 1, "evaluate_encoder": 1, "collect_rows": 1, "print_tables": 1}
    assert fresh.plan("print_tables").jobs == jobs
    done = fresh.snakemake("print_tables")
    assert done.rc == 0 and best.read_bytes() == told, done.text
