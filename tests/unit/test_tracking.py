from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pandas as pd
import pytest

from nemesis.errors import NemesisError
from nemesis.tracking.replay import log_tracking
from nemesis.tracking.store import TAG_RUN, experiment_name, opened, without_password

SECRET = "hush"


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def logged(report, tmp_path_factory):
    """(results folder, the experiment's record) after logging once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        results = tmp_path_factory.mktemp("results")
        return results, _log(report, results)


def _artifacts(report):
    return {"tables": report.tables, "figures": report.figures, "page": report.page.parent}


def _log(report, results, **changes):
    spec, artifacts = report.spec | changes.pop("spec", {}), changes.pop("artifacts", _artifacts(report))
    log_tracking(spec, report.collected, artifacts, results, results / "tracking.json")
    return json.loads((results / "tracking.json").read_text())


def _client(record):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=record["tracking_uri"])


def test_results_hold_the_store(logged):
    results, record = logged
    assert record["tracking_uri"] == f"sqlite:///{results.resolve()}/mlflow.db"
    assert (results / "mlflow.db").is_file()
    assert (results / "mlartifacts").is_dir()


def test_a_training_has_its_parameters_curve_and_checkpoint(report, logged):
    _, record = logged
    client, entry = _client(record), report.spec["runs"][0]
    run = client.get_run(record["runs"][entry["run"]])
    assert run.info.status == "FINISHED"
    assert run.data.params["settings.embed_dim"] == "48"
    curve = client.get_metric_history(run.info.run_id, "loss")
    expected = pd.read_parquet(report.collected / "curves.parquet").query("run == @entry['run'] and monitor == 'loss'")
    assert [(m.step, m.value) for m in curve] == list(zip(expected["step"], expected["value"], strict=True))
    assert run.data.tags["nemesis.checkpoint"] == f"{entry['folder']}/checkpoint.safetensors"
    assert run.data.metrics["timing/pretrain/seconds"] == 12.5
    rows = pd.read_parquet(report.collected / "rows.parquet").query("run == @entry['run'] and metric == 'auroc'")
    means = rows.query("protocol == 'linear' and label_fraction == 1 and easy_negatives == 'out'")["value"]
    assert len(means) > 1 and run.data.metrics["auroc/linear/1"] == pytest.approx(means.mean())


def test_a_run_that_several_parts_ask_for_is_logged_once_under_all_their_names(report, tmp_path):
    by_part = {entry["part"]: entry for entry in reversed(report.spec["runs"])}  # the first of each
    shared, cell = by_part["methods"], by_part["sweep"]
    again = {"part": "ablations", "label": "as configured", "group": "masking"}
    record = _log(report, tmp_path, spec={"runs": [shared, cell, shared | again]})
    assert record["runs"].keys() == {shared["run"], cell["run"], "report"}
    runs = {name: _client(record).get_run(run) for name, run in record["runs"].items()}
    assert runs[shared["run"]].info.run_name == f"{shared['label']}; as configured, seed 0"
    expected = {"part": "methods; ablations", "label": f"{shared['label']}; as configured", "group": "masking"}
    assert expected.items() <= {k.removeprefix("nemesis."): v for k, v in runs[shared["run"]].data.tags.items()}.items()
    tags = runs[cell["run"]].data.tags
    assert tags["nemesis.part"] == "sweep" and tags["nemesis.label"] == cell["label"] and "nemesis.group" not in tags
    metrics = runs[cell["run"]].data.metrics
    assert {"loss", "psnr", "timing/pretrain/seconds", "timing/evaluate/seconds", "auroc/linear/1"} <= metrics.keys()


def test_what_was_shown_live_is_replaced(report, tmp_path):
    entry = report.spec["runs"][0]
    spec = {"runs": [entry]}
    with opened(experiment_name(report.spec), tmp_path, 5, 0) as store:
        live = [
            store.client.create_run(store.experiment, tags={TAG_RUN: entry["run"]}).info.run_id  # one is still RUNNING
            for _ in range(2)
        ]
        store.client.set_terminated(live[0])
    record = _log(report, tmp_path, spec=spec)
    active = {run.info.run_id: run.info.status for run in _client(record).search_runs([record["experiment_id"]])}
    assert active == dict.fromkeys(record["runs"].values(), "FINISHED")
    assert _log(report, tmp_path, spec=spec) == record


def test_an_experiment_that_another_process_has_just_created_is_taken(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    with opened("small", tmp_path, 5, 0) as first:
        known, asked = MlflowClient.get_experiment_by_name, []

        def late(self, name):
            asked.append(name)
            return None if len(asked) == 1 else known(self, name)

        monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
        with opened("small", tmp_path, 5, 0) as second:
            assert second.experiment == first.experiment


def test_nothing_of_ours_is_left_in_the_environment(tmp_path):
    before = dict(os.environ)
    with opened("small", tmp_path, 5, 0):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"
    assert dict(os.environ) == before


def test_every_printed_table_loaded_back_equals_its_file(report, logged, tmp_path):
    _, record = logged
    client, run = _client(record), record["runs"]["report"]
    for name, folder in _artifacts(report).items():
        for file in folder.iterdir():
            back = client.download_artifacts(run, f"{name}/{file.name}", str(tmp_path))
            with open(back, "rb") as content:
                assert content.read() == file.read_bytes()


def test_a_replay_logs_nothing_twice_and_a_change_replaces(report, logged, tmp_path):
    from mlflow.entities import ViewType

    results, record = logged
    assert _log(report, results) == record
    tables = tmp_path / "tables"
    shutil.copytree(report.tables, tables)
    (tables / "main.csv").write_text("changed\n")
    changed = _log(report, results, artifacts=_artifacts(report) | {"tables": tables})
    assert changed["runs"]["report"] != record["runs"]["report"]
    assert changed["runs"].items() - record["runs"].items() == {("report", changed["runs"]["report"])}
    active = _client(record).search_runs([record["experiment_id"]], run_view_type=ViewType.ACTIVE_ONLY)
    assert sorted(run.info.run_id for run in active) == sorted(changed["runs"].values())
    # A replay that was killed in the middle left a run that is not finished: it is written anew.
    entry = report.spec["runs"][0]["run"]
    _client(record).set_terminated(record["runs"][entry], status="FAILED")
    mended = _log(report, results)
    assert mended["runs"][entry] != record["runs"][entry]
    assert _client(record).get_run(mended["runs"][entry]).info.status == "FINISHED"


def test_another_configuration_is_another_experiment(report, logged):
    results, record = logged
    other = _log(report, results, spec={"config_hash": "fedcba543210", "runs": report.spec["runs"][:1]})
    assert other["experiment_id"] != record["experiment_id"]


def test_where_the_variable_points(report, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    monkeypatch.chdir(tmp_path)
    _log(report, tmp_path / "results", spec={"runs": report.spec["runs"][:1]})
    assert (tmp_path / "elsewhere.db").is_file()
    assert not (tmp_path / "results" / "mlflow.db").exists()


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_of_files_is_refused(report, tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(NemesisError, match="sqlite:///"):
        _log(report, tmp_path)


def test_a_server_that_is_down_is_one_clear_fault(report, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(NemesisError, match="Nothing is lost") as error:
        _log(report, tmp_path)
    assert time.monotonic() - start < 20
    assert SECRET not in str(error.value)
    assert len(error.value.faults) == 1
    assert not (tmp_path / "tracking.json").exists()


def test_a_server_that_never_answers_is_given_up(report, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(NemesisError, match="could not be written"):
            _log(report, tmp_path)
    assert time.monotonic() - start < 20


def test_passwords_are_not_shown():
    assert without_password(f"https://me:{SECRET}@host:5000/x") == "https://host:5000/x"
    assert without_password("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
