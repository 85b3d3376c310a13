"""The adaptive sweep: every trial ends once, whatever happens to the workers; runs are shared with everything else."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import torch
import yaml
from optuna.trial import TrialState
from phantoms import NEMESIS

from nemesis.config import Preparation
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.errors import Fault, NemesisError, TrainingError
from nemesis.evaluation import evaluate as evaluating
from nemesis.experiment import plan
from nemesis.runs import search_run
from nemesis.sweep import search as module
from nemesis.sweep.search import ATTEMPTS, Search, by_trial, search_sweep, trial_rows
from nemesis.sweep.study import STUDY
from nemesis.training.pretrain import pretrain

STEPS = 60
CONFIG = {
    "experiment": "tiny",
    "datasets": [{"reader": "phantom", "subjects": 9, "base_spacing_mm": 12.0}],
    "pools": {"evaluation": 7},
    "superpatch": 16,
    "organs": ["liver", "spleen", "stomach"],
    "probe": {"folds": 5, "label_fractions": [0.5, 1.0], "draws": 1, "positive_voxels": 5, "regularisation": [0.01, 0.1]},
    "pretraining": {"steps": STEPS, "batch_size": 2, "precision": "32-true", "learning_rate": 1e-3},
    "methods": [{"name": "nemesis", "settings": NEMESIS}],
    "sweep": {"embed_dims": [32, 48], "mask_ratios": [0.25, 0.75], "search": {"trials": 5, "startup": 2, "workers": 3}},
    "device": "cpu",
}
RUNGS = [20, 30]  # of 60 steps: a quarter, rounded up to a point of the curve, and a half
ENDED = {"complete", "pruned"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment whose scans are ingested and whose search has not begun."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    planned = plan([folder / "config.yaml"], results=folder / "results")
    for shard in planned.shards.values():
        s = planned.ingest_spec(shard)
        preparation = Preparation.model_validate(s["preparation"])
        ingest(Path(s["manifest"]), None, Path(s["volumes"]), Path(s["verdicts"]), preparation, s["superpatch"], 0)
    write_index([shard.verdicts for shard in planned.shards.values()], planned.index)
    return planned


@pytest.fixture
def spec(experiment, tmp_path):
    """The search of a test of its own: in its folder, with runs of its own."""
    return copy.deepcopy(experiment.search_spec()) | {"out": str(tmp_path / "sweep"), "runs": str(tmp_path / "runs")}


@pytest.fixture
def quick(monkeypatch):
    """Nothing is trained: a state or a checkpoint appears, whose score follows from the point. Returns the calls."""
    calls = []

    def train(self, run, until=None):
        folder = self.run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        calls.append((run.id, until))
        torch.save({"step": until or STEPS, "network": run.place}, folder / ("state.pt" if until else "checkpoint.safetensors"))

    def score(spec, device, weights=None):
        return 1 - abs(spec["identity"]["settings"]["plane_mask_ratio"] - 0.5) + spec["identity"]["settings"]["embed_dim"] / 1000

    monkeypatch.setattr(Search, "pretrain", train)
    monkeypatch.setattr(evaluating, "validation_auroc", score)
    return calls


def opened(spec):
    return Search(spec, "cpu", 0, 10)


def rows_of(spec):
    return trial_rows(spec, by_trial(opened(spec).study.get_trials()))


def assert_each_ended_once(rows, trials):
    """So many trials are complete or pruned; a failed one stands beside its retry, which has its point."""
    ended = [row for row in rows if row["state"] in ENDED]
    assert len(ended) == trials and len(rows) - trials == len([row for row in rows if row["state"] == "failed"])
    firsts = [row["number"] if row["retry_of"] is None else row["retry_of"] for row in ended]
    assert len(set(firsts)) == trials
    at = {row["number"]: (row["embed_dim"], row["mask_ratio"], row["run"]) for row in rows}
    assert all(row["retry_of"] is None or at[row["number"]] == at[row["retry_of"]] for row in rows)


# ------------------------------------------------------------------------------------------------------------- proposals


@pytest.mark.parametrize("settings", [NEMESIS, {**NEMESIS, "preset": "official", "grid": 4, "ffn_dim": None}])
def test_a_point_of_the_search_is_the_run_of_the_same_cell_of_a_grid(experiment, tmp_path, settings):
    def planned(**sweep):
        raw = CONFIG | {"methods": [{"name": "nemesis", "settings": settings}], "sweep": CONFIG["sweep"] | sweep}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results")

    searched, grid = planned(seeds=[3]), planned(seeds=[3], search=None)
    template = searched.search_spec()["template"]
    cells = [run for run in grid.runs if run.part == "sweep"]
    assert [search_run(template, **run.place) for run in cells] == cells and len(cells) == 4
    assert not [run for run in searched.runs if run.part == "sweep"]


def test_points_lie_on_the_grid_of_the_section_and_one_worker_proposes_the_same_again(spec, quick, tmp_path):
    spec["search"] |= {"trials": 8, "rungs": []}
    points = []
    for name in ("one", "other"):
        own = spec | {"out": str(tmp_path / name), "runs": str(tmp_path / name / "runs")}
        opened(own).work()
        points.append([(row["embed_dim"], row["mask_ratio"]) for row in rows_of(own)])
    assert points[0] == points[1]
    assert {width for width, _ in points[0]} == {32, 48}
    assert {ratio for _, ratio in points[0]} <= {round(0.25 + 0.05 * n, 2) for n in range(11)}
    # of the 4 slices and the 16 columns of the grid no parts can stay visible
    shares = {row["mask_ratio"]: row["effective_mask_ratio"] for row in rows_of(own)}
    assert shares == {ratio: 1 - int(4 * (1 - ratio) + 1e-9) * int(16 * (1 - ratio) + 1e-9) / 64 for ratio in shares}
    assert any(share != pytest.approx(1 - (1 - ratio) ** 2) for ratio, share in shares.items())
    spec["search"]["seed"] = 1
    opened(spec).work()
    assert [(row["embed_dim"], row["mask_ratio"]) for row in rows_of(spec)] != points[0]


def test_a_point_that_was_computed_before_costs_nothing(spec, quick):
    spec |= {"embed_dims": [32], "mask_ratios": [0.5, 0.5]}
    opened(spec).work()
    rows = rows_of(spec)
    assert_each_ended_once(rows, 5)
    (run,) = {row["run"] for row in rows}
    assert quick == [(run, 20), (run, 30), (run, None)]
    assert {row["validation_auroc"] for row in rows} == {1.032} and {row["steps"] for row in rows} == {STEPS}


def test_more_trials_go_on_with_the_same_study(spec, quick):
    opened(spec).work()
    before = rows_of(spec)
    spec["search"]["trials"] = 7
    opened(spec).work()
    assert_each_ended_once(rows_of(spec), 7)
    assert rows_of(spec)[:5] == before
    spec["search"]["rungs"] = [0.1]
    assert opened(spec).study.get_trials() == []  # other rungs, another study


def test_fewer_trials_begin_no_more_than_are_asked_for_and_all_that_ended_count(spec, quick, monkeypatch):
    spec["search"]["rungs"] = []
    train = Search.pretrain

    def interrupted(self, run, until=None):
        if len(quick) == 3:
            raise KeyboardInterrupt
        train(self, run, until)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "pretrain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(spec).work()
    spec["search"]["trials"] = 2
    before = rows_of(spec)
    assert [row["state"] for row in before].count("complete") >= 3  # of a point that was computed before, too
    opened(spec).work()
    assert rows_of(spec) == before
    spec["search"]["trials"] = len(before)
    opened(spec).work()
    assert_each_ended_once(rows_of(spec), len(before))
    assert rows_of(spec)[-1]["retry_of"] == before[-1]["number"]


def test_the_score_is_of_training_patients_at_all_labels(experiment, tmp_path, monkeypatch):
    """Rows that a search must not look at do not change its score."""
    seen = []
    honest = evaluating.probe

    def probed(features, table, organs, settings):
        predictions, rows = honest(features, table, organs, settings)
        seen.append(settings)
        spoilt = [row | {"value": 9.0} if row["metric"] in ("auroc", "average_precision") else row for row in rows]
        values = [row["value"] for row in rows if row["metric"] == "validation_auroc"]
        seen.append(sum(values) / len(values))
        return predictions, spoilt

    search = opened(experiment.search_spec() | {"out": str(tmp_path / "sweep"), "runs": str(tmp_path / "runs")})
    run = search_run(search.spec["template"], 32, 0.5)
    search.pretrain(run)
    monkeypatch.setattr(evaluating, "probe", probed)
    score = evaluating.validation_auroc(search.evaluation(run, tmp_path), "cpu")
    assert score == pytest.approx(seen[1], abs=1e-12) and 0 <= score <= 1
    assert seen[0].label_fractions == [1.0] and seen[0].protocols == ["linear"]


def test_a_search_is_planned_without_cells_and_needs_patients_to_validate_by(tmp_path):
    def planned(**top):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | top))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results")

    searched = planned()
    assert [run.part for run in searched.runs] == ["methods"]
    assert searched.report_spec()["search"] == searched.search_spec()["out"] == str(tmp_path / "results" / "tiny" / "sweep")
    assert searched.search_threads == 3 * searched.config.pretraining.threads
    with pytest.raises(NemesisError, match=r"sweep\.seeds: .* 2 seeds are asked for \(0, 4\)\. Name one, say `seeds: \[0\]`"):
        planned(seeds=[4, 0])
    assert [run.seed for run in planned(seeds=[4, 0], sweep=CONFIG["sweep"] | {"seeds": [4]}).runs] == [4, 0]
    with pytest.raises(NemesisError, match=r"takes 5 training patients in each fold\. There are 4"):
        planned(probe=CONFIG["probe"] | {"folds": 3})
    grid = planned(probe=CONFIG["probe"] | {"folds": 3}, sweep=CONFIG["sweep"] | {"search": None})
    assert [run.part for run in grid.runs] == ["methods"] + 4 * ["sweep"] and "search" not in grid.report_spec()


@pytest.mark.parametrize(
    ("top", "repeated"),
    [
        ({"device": "auto", "state_every": 7}, False), ({"sweep": {"search": {"workers": 9}}}, False),
        ({"sweep": {"search": {"startup": 3}}}, True), ({"pretraining": {"steps": 50}}, True), ({"organs": ["liver"]}, True),
    ],
)  # fmt: skip
def test_the_job_is_given_what_the_search_depends_on(tmp_path, top, repeated):
    specs = []
    for change in ({}, top):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(CONFIG))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"extends": "base.yaml"} | change))
        specs.append(plan([tmp_path / "config.yaml"], results=tmp_path / "results").search_spec())
    assert (specs[0] != specs[1]) == repeated


def test_of_the_runs_that_the_workflow_trains_those_are_told_that_a_trial_may_be(tmp_path):
    varied = {"wider": {"embed_dim": 48}, "too wide": {"embed_dim": 64}, "axis alone": {"plane_mask_ratio": 0.0}}
    variants = [{"label": label, "group": "varied", "settings": settings} for label, settings in varied.items()]

    def told(**top):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"ablations": {"variants": variants}} | top))
        planned = plan([tmp_path / "config.yaml"], results=tmp_path / "results")
        return [planned.run(run).label for run in planned.searched_runs]

    assert told() == ["NEMESIS", "wider"]
    assert told(sweep=CONFIG["sweep"] | {"pretraining": {"steps": 7}}) == []
    assert told(sweep=CONFIG["sweep"] | {"mask_ratios": [0.6, 0.75]}) == []
    assert told(sweep=CONFIG["sweep"] | {"search": None}) == []


def test_no_more_workers_are_started_than_there_are_threads_for(experiment, tmp_path):
    assert [experiment.search_processes(threads) for threads in (1, 2, 3)] == [1, 2, 3]
    raw = CONFIG | {"pretraining": CONFIG["pretraining"] | {"threads": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    doubled = plan([tmp_path / "config.yaml"], results=tmp_path / "results")
    assert doubled.search_threads == 6 and [doubled.search_processes(threads) for threads in (1, 3, 5, 6)] == [1, 1, 2, 3]


# --------------------------------------------------------------------------------------------------------------- pruning


def test_pruning_stops_at_a_rung_and_leaves_a_state_that_a_full_training_resumes(spec, monkeypatch, tmp_path):
    """The last of three trials is behind the median of two complete ones."""
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(evaluating, "validation_auroc", lambda *_: next(falling) / 100)
    spec["search"] |= {"trials": 3, "startup": 2}
    opened(spec).work()
    rows = rows_of(spec)
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned"]
    assert [row["steps"] for row in rows] == [STEPS, STEPS, RUNGS[0]]
    assert [row["validation_auroc"] for row in rows] == [0.98, 0.95, 0.94]

    run = search_run(spec["template"], rows[2]["embed_dim"], rows[2]["mask_ratio"])
    folder = Path(spec["runs"]) / run.id
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == RUNGS[0]
    assert not (folder / "checkpoint.safetensors").exists()
    undisturbed = tmp_path / "undisturbed" / run.id
    for whole in (folder, undisturbed):
        pretrain(run.identity, whole, Path(spec["pool"]), Path(spec["index"]), "cpu", 0, 10)
    for name in ("checkpoint.safetensors", "curve.jsonl"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_run_that_others_trained_beyond_a_rung_is_scored_where_it_can_be(spec, quick, monkeypatch):
    spec["search"]["trials"] = 1
    search = opened(spec)
    finished = []
    train = Search.pretrain

    def beyond(self, run, until=None):
        train(self, run, until)
        if until == RUNGS[0]:  # as an interrupted training of another experiment left it
            torch.save({"step": 25, "network": {}}, self.run_folder(run) / "state.pt")
        finished.append(until)

    monkeypatch.setattr(Search, "pretrain", beyond)
    search.work()
    (trial,) = search.study.get_trials()
    assert sorted(trial.intermediate_values) == [RUNGS[1], STEPS] and finished == [*RUNGS, None]


# --------------------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_trial_is_taken_up_by_whoever_comes_next(spec, quick, monkeypatch):
    train = Search.pretrain

    def interrupted(self, run, until=None):
        if len(quick) == 4:
            raise KeyboardInterrupt
        train(self, run, until)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "pretrain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(spec).work()
    assert [row["state"] for row in rows_of(spec)[:2]] == ["complete", "failed"]
    opened(spec).work()
    rows = rows_of(spec)
    assert_each_ended_once(rows, 5)
    assert [row["retry_of"] for row in rows].count(1) == 1 and len(rows) == 6
    assert len({run for run, until in quick if until is None}) == len([run for run, until in quick if until is None])


def test_a_worker_that_died_before_its_first_sign_of_life_holds_nothing_up(spec, quick):
    spec["search"]["trials"] = 1
    search = opened(spec)
    with pytest.warns(UserWarning, match="Heartbeat"):
        search.study.ask()
    search.work()
    first, second = search.study.trials
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert [attempt.number for attempt in by_trial(search.study.trials)[0]] == [0, 1]
    assert_each_ended_once(rows_of(spec), 1)


def test_two_workers_never_take_one_trial_nor_make_another(spec, quick, monkeypatch):
    begun = Search.trials

    def slow(self):
        trials = begun(self)
        time.sleep(0.3)  # whoever is not kept out now finds as many left
        return trials

    monkeypatch.setattr(Search, "trials", slow)
    spec["search"]["trials"] = 2
    workers = [threading.Thread(target=opened(spec).work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    rows = rows_of(spec)
    assert [row["number"] for row in rows] == [0, 1] and len(opened(spec).study.get_trials()) == 2
    assert_each_ended_once(rows, 2)


def test_a_worker_taken_for_dead_goes_on_with_other_trials(spec, quick, monkeypatch, capsys):
    train = Search.pretrain

    def stopped(self, run, until=None):
        train(self, run, until)
        if len(quick) == 2:  # as another worker does after the grace period
            (trial,) = self.study.get_trials(states=(TrialState.RUNNING,))
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    monkeypatch.setattr(Search, "pretrain", stopped)
    opened(spec).work()
    rows = rows_of(spec)
    assert_each_ended_once(rows, 5)
    assert rows[0]["state"] == "failed" and rows[-1]["retry_of"] == 0
    assert "trial 0: taken for dead" in capsys.readouterr().out


def test_a_training_that_fails_is_a_failed_trial_with_its_sentence_and_ends_nothing(spec, quick, monkeypatch, capsys):
    train = Search.pretrain

    def exploding(self, run, until=None):
        if len(quick) == 1:
            quick.append(None)
            raise TrainingError(Fault(run.id, "the loss is not finite", "Lower it"))
        train(self, run, until)

    monkeypatch.setattr(Search, "pretrain", exploding)
    opened(spec).work()
    rows = rows_of(spec)
    assert len(rows) == 5 and [row["state"] for row in rows].count("failed") == 1
    assert "loss is not finite" in rows[0]["fault"] and "Lower it" in capsys.readouterr().out
    opened(spec).work()
    assert rows_of(spec) == rows


def test_any_other_error_ends_the_worker_and_its_trial_is_not_lost(spec, quick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "validation_auroc", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opened(spec).work()
    opened(spec).work()
    assert_each_ended_once(rows_of(spec), 5)


def test_a_trial_without_a_score_has_failed(spec, quick, monkeypatch):
    scores = iter([float("nan")])
    honest = evaluating.validation_auroc
    monkeypatch.setattr(evaluating, "validation_auroc", lambda *told: next(scores, None) or honest(*told))
    opened(spec).work()
    rows = rows_of(spec)
    assert len(rows) == 5 and [row["state"] for row in rows].count("failed") == 1
    assert "has no validation AUROC, but nan" in rows[0]["fault"]


def test_settings_that_do_not_fit_end_their_trial_alone(spec, quick):
    spec["embed_dims"] = [32, 33]
    opened(spec).work()
    rows = rows_of(spec)
    assert len(rows) == 5 and {row["state"] for row in rows if row["embed_dim"] == 32} <= ENDED
    failed = [row for row in rows if row["embed_dim"] == 33]
    assert {row["state"] for row in failed} == {"failed"} and {row["effective_mask_ratio"] for row in failed} == {None}
    assert all("33" in row["fault"] for row in failed)


def test_a_trial_that_kills_its_workers_comes_last_and_fails_after_a_few(spec, quick, monkeypatch):
    train = Search.pretrain

    def deadly(self, run, until=None):
        deaths.append(run.id)
        if run.id == deaths[0]:
            raise MemoryError
        train(self, run, until)

    deaths = []
    monkeypatch.setattr(Search, "pretrain", deadly)
    for _ in range(ATTEMPTS):
        with pytest.raises(MemoryError):
            opened(spec).work()
        assert rows_of(spec)[-1]["fault"] is None or len(rows_of(spec)) == 4 + ATTEMPTS
    opened(spec).work()
    rows = rows_of(spec)
    first, *others = rows[:5]
    assert {row["state"] for row in others} <= ENDED and first["run"] not in {row["run"] for row in others}
    assert [row["retry_of"] for row in rows[5:]] == [0] * (ATTEMPTS - 1) and deaths.count(first["run"]) == ATTEMPTS
    assert [row["fault"] for row in rows[:-1]] == [None] * (len(rows) - 1)
    assert rows[-1]["fault"] == f"trial {rows[-1]['number']}: its worker died 3 times. See {spec['log']}"
    assert spec["log"].endswith("results/tiny/logs/search_sweep.log")


@pytest.mark.parametrize("end", [NemesisError(Fault("device: cuda", "no GPU is visible", "Ask for one")), KeyboardInterrupt()])
def test_what_ends_a_worker_but_is_not_the_trials_leaves_it_to_others(spec, quick, monkeypatch, end):
    """A sick worker or Ctrl-C, however often: nothing is lost, nothing is held against the trial."""
    spec["search"]["trials"] = 2

    def ended(self, run, until=None):
        raise end

    for _ in range(2 * ATTEMPTS + 1):
        with monkeypatch.context() as patch:
            patch.setattr(Search, "pretrain", ended)
            with pytest.raises(type(end)):
                opened(spec).work()
    assert {row["state"] for row in rows_of(spec)} == {"failed"} and {row["fault"] for row in rows_of(spec)} == {None}
    opened(spec).work()
    assert_each_ended_once(rows_of(spec), 2)


def test_a_job_whose_workers_are_all_sick_fails_with_what_they_said_and_goes_on_when_they_are_not(spec, quick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(NemesisError, match=r"5 of 5 trials are left.*search_sweep\.log") as raised:
            search_sweep(spec, 1, "cuda", 0, 10)
    assert [fault.where for fault in raised.value.faults[1:]] == ["device: cuda"]
    opened(spec).work()
    assert_each_ended_once(rows_of(spec), 5)


def test_a_worker_that_is_told_to_end_says_so(spec):
    """As a cluster does before it takes a job's place away: not one of the deaths that fail a trial."""
    spec["template"]["pretraining"]["steps"] = 100_000
    arguments = [json.dumps(spec), "--device", "cpu", "--state-every", "10"]
    worker = subprocess.Popen([sys.executable, "-m", "nemesis", "sweep", "work", *arguments], stderr=subprocess.DEVNULL)
    while not list(Path(spec["runs"]).glob("*/state.pt")):
        assert worker.poll() is None
        time.sleep(0.01)
    worker.terminate()
    assert worker.wait(timeout=60) != 0
    (trial,) = opened(spec).study.get_trials()
    assert trial.state == TrialState.FAIL and trial.user_attrs["left"] == []


def test_a_job_whose_workers_all_died_says_what_is_left(spec, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(NemesisError, match=r"5 of 5 trials are left.*exit codes \[1, 1\].*goes on"):
        search_sweep(spec, 2, "cpu", 0, 10)
    assert not (Path(spec["out"]) / "trials.parquet").exists()


# --------------------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def searched(experiment, tmp_path_factory):
    """A job with three workers, one of them killed in the middle of a trial; returns its specification and what it said."""
    folder = tmp_path_factory.mktemp("searched")
    spec = copy.deepcopy(experiment.search_spec()) | {"out": str(folder / "sweep"), "runs": str(folder / "runs")}
    spec["template"]["pretraining"]["steps"] = 90
    spec["search"] |= {"rungs": [0.8], "trials": 4}
    command = [sys.executable, "-m", "nemesis", "sweep", "search", json.dumps(spec), "--processes", "3", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen([*command, "--state-every", "10"], **pipes)
    while not (training := workers_in_training(job, Path(spec["runs"]))):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)
    os.kill(training[0], signal.SIGKILL)
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said
    return spec, said


def workers_in_training(job, runs):
    """Process ids of the workers that hold the lock of a run which has saved a state."""
    found = []
    for worker in psutil.Process(job.pid).children():
        with suppress(psutil.NoSuchProcess):
            files = [Path(file.path) for file in worker.open_files()]
            if any(file.name == "lock" and file.parent.parent == runs and (file.parent / "state.pt").exists() for file in files):
                found.append(worker.pid)
    return found


def test_every_trial_ends_once_though_a_worker_was_killed(searched):
    spec, said = searched
    rows = pd.read_parquet(Path(spec["out"]) / "trials.parquet")
    rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    assert [row["number"] for row in rows] == list(range(5))
    assert_each_ended_once(rows, 4)
    (killed,) = [row for row in rows if row["state"] == "failed"]
    (retry,) = [row for row in rows if row["retry_of"] is not None]
    assert retry["retry_of"] == killed["number"] and killed["fault"] is None
    resumed = [int(step) for step in re.findall(rf"{killed['run']}: resumed at step (\d+)", said)]
    assert resumed and resumed[0] < 80  # where it was, before the first rung
    assert "1 of 3 workers ended early" in said and "Traceback" not in said


def test_the_best_trial_is_evaluated_and_told(searched):
    spec, said = searched
    out = Path(spec["out"])
    rows = pd.read_parquet(out / "trials.parquet")
    complete = rows[rows["state"] == "complete"]
    best = json.loads((out / "best.json").read_text())
    row = rows.set_index("number").loc[best["trial"]]
    assert best["validation_auroc"] == row["validation_auroc"] == complete["validation_auroc"].max()
    assert (best["run"], best["embed_dim"], best["mask_ratio"]) == (row["run"], row["embed_dim"], row["mask_ratio"])
    assert best["label"] == f"E {row['embed_dim']}, r {row['mask_ratio']:g}" and best["part"] == "sweep"
    assert f"best of 5 trials: {best['trial']}, {best['label']}" in said
    measured = pd.read_parquet(Path(best["evaluation"]) / "rows.parquet")
    assert set(measured["run"]) == {best["run"]} and set(measured["label_fraction"].dropna()) == {1.0}
    validation = measured.loc[measured["metric"] == "validation_auroc", "value"]
    assert validation.mean() == pytest.approx(best["validation_auroc"], abs=1e-12)
    of_superpatches = measured[measured["scope"] == "superpatch"]
    shares = of_superpatches.loc[of_superpatches["metric"] == "effective_mask_ratio", "value"]
    assert shares.tolist() == pytest.approx([row["effective_mask_ratio"]] * len(shares), abs=1e-6) and len(shares)
    files = {"rows.parquet", "predictions.parquet", "reconstructions.parquet", "reconstruction.npz", "timing.json"}
    assert {path.name for path in Path(best["evaluation"]).iterdir()} == files


def test_the_study_is_there_for_optuna_and_the_same_job_again_trains_nothing(searched, capsys, monkeypatch):
    spec, _ = searched
    (path,) = Path(spec["out"]).glob("search-*.db")
    assert json.loads((path.parent / "best.json").read_text())["study"] == path.name
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")
    assert len(study.trials) == 5 and study.best_trial.intermediate_values.keys() == {80, 90}
    before = {path: path.read_bytes() for path in Path(spec["out"]).rglob("*.parquet")}
    monkeypatch.setattr(module.sys, "executable", "/bin/false")  # no worker is needed
    search_sweep(spec, 3, "cpu", 0, 10)
    assert {path: path.read_bytes() for path in before} == before
    assert "step" not in capsys.readouterr().err
