"""Curves in MLflow while networks train, on a real server that is killed, one that never answers, and a fresh SQLite store."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from phantoms import identity_of, ingest_phantoms
from report_experiment import make_experiment

from nemesis.report.collect import collect
from nemesis.tracking.replay import log_tracking
from nemesis.tracking.store import TAG_DIGEST, TAG_RUN, experiment_name
from nemesis.training import live as module
from nemesis.training.live import LiveCurve
from nemesis.training.pretrain import pretrain

IDENTITY, RUN = identity_of(), "nemesis-s0-0123456789ab"
STEPS = [10, 20, 24]  # of the points of its curve
BITS = ("checkpoint.safetensors", "curve.jsonl", "run.json")
LONG_S = 120.0  # more than anything here takes
# `nemesis` that shows curves at once and stops before a step until a file is there
NEMESIS = """
import sys, time
from pathlib import Path
from nemesis.training import live, pretrain
gate, at, live.AFTER_S, live.END_S = Path(sys.argv[1]), int(sys.argv[2]), 0.0, float(sys.argv[3])
rate = pretrain.learning_rate
def waits(step, *rest):
    while step == at and not gate.exists():
        time.sleep(0.01)
    return rate(step, *rest)
pretrain.learning_rate = waits
sys.argv = ["nemesis", *sys.argv[4:]]
from nemesis.cli import main
main()
"""


class Server:
    """`mlflow server` on a port and a data base of its own."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.uri, self.folder = f"http://{self.address}", folder

    def start(self):
        host, port = self.address.split(":")
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", port]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)
        wait_for(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def wait_for(condition):
    """What the condition says as soon as that is something."""
    until = time.monotonic() + LONG_S
    while not (said := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return said


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(module, "AFTER_S", 0.0)
    monkeypatch.setattr(module, "END_S", LONG_S)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return ingest_phantoms(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory):
    """The bits of a run that nobody watched."""
    folder = tmp_path_factory.mktemp("undisturbed") / RUN
    pretrain(IDENTITY, folder, *cohort, "cpu", workers=0, state_every=10)
    return bits(folder)


def bits(folder):
    return {name: (folder / name).read_bytes() for name in BITS}


class Training:
    """`nemesis pretrain` of one run in ``place``, which waits before ``at`` until it is let go."""

    def __init__(self, place, cohort, track, at=-1, uri=None, end_s=LONG_S, **env):
        self.folder, self.gate = place / "results" / "runs" / RUN, place / "gate"
        pool, index = map(str, cohort)
        command = [sys.executable, "-c", NEMESIS, str(self.gate), str(at), str(end_s), "pretrain", json.dumps(IDENTITY)]
        command += ["--folder", str(self.folder), "--pool", pool, "--index", index, "--device", "cpu", "--state-every", "10"]
        command += ["--track", track, "--label", "NEMESIS, small"]
        env = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {}) | env
        self.process = subprocess.Popen(command, cwd=place, env=env, stderr=subprocess.PIPE, text=True)

    def end(self):
        """What it said, once it and all that it started have ended."""
        self.gate.touch()
        try:
            return self.process.communicate(timeout=LONG_S)[1]
        finally:
            self.process.kill()


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def logged(client, experiment):
    """The active runs of an experiment."""
    known = client.get_experiment_by_name(experiment)
    return [] if known is None else list(client.search_runs([known.experiment_id]))


def shown(client, run):
    """The curve of a run in MLflow, as the lines of its JSONL hold it."""
    points = {}
    for monitor in ("learning_rate", "loss", "psnr", "psnr_masked"):
        for metric in client.get_metric_history(run.info.run_id, monitor):
            points.setdefault(metric.step, {"step": metric.step})[monitor] = metric.value
    return [points[step] for step in sorted(points)]


def curve_of(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def fresh_store(monkeypatch, tmp_path):
    """Address of the store that belongs to a place in which nothing was logged yet."""
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/results/mlflow.db"


def test_a_curve_is_seen_live_and_the_server_s_death_costs_the_view_alone(server, cohort, undisturbed, tmp_path, monkeypatch):
    spec = make_experiment(tmp_path / "made")
    entry = spec["runs"][0]
    assert entry["run"] == RUN
    spec["runs"].append(entry | {"part": "ablations", "label": "as configured", "group": ""})
    name, client = experiment_name(spec), client_of(server.uri)
    training = Training(tmp_path, cohort, name, at=20, uri=server.uri)

    def half():
        return [run for run in logged(client, name) if [point["step"] for point in shown(client, run)] == STEPS[:2]]

    (run,) = wait_for(half)
    assert run.info.status == "RUNNING" and run.info.run_name == "NEMESIS, small, seed 0"
    assert run.data.tags[TAG_RUN] == RUN and TAG_DIGEST not in run.data.tags
    assert run.data.params["settings.embed_dim"] == "32"
    server.kill()
    said = training.end()
    assert training.process.returncode == 0
    (told,) = [line for line in said.splitlines() if "MLflow" in line]
    assert told.startswith(f"{RUN}: not shown live: MLflow at {server.uri} could not be written")
    assert "Traceback" not in said
    assert bits(training.folder) == undisturbed

    shutil.rmtree(entry["folder"])
    training.folder.rename(entry["folder"])
    collect(spec, tmp_path / "collected")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    assert [run.info.status for run in logged(client, name)] == ["RUNNING"]
    records = []
    for _ in range(2):
        log_tracking(spec, tmp_path / "collected", {}, tmp_path / "results", tmp_path / "tracking.json")
        records.append(json.loads((tmp_path / "tracking.json").read_text()))
        runs = {run.data.tags[TAG_RUN]: run for run in logged(client, name)}
        assert {tag: run.info.run_id for tag, run in runs.items()} == records[0]["runs"]
        assert len(logged(client, name)) == len(runs) == len({e["run"] for e in spec["runs"]}) + 1
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert records[0] == records[1]
    assert shown(client, runs[RUN]) == curve_of(Path(entry["folder"]))
    tags = runs[RUN].data.tags
    assert tags["nemesis.label"] == "NEMESIS; as configured" and tags["nemesis.part"] == "methods; ablations"


def test_a_server_that_never_answers_changes_nothing_and_delays_nobody(cohort, undisturbed, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600"}
        training = Training(tmp_path, cohort, "small", uri=uri, end_s=0.5, **patient)
        said = training.end()
    assert training.process.returncode == 0
    assert "the last points did not reach MLflow within 0.5 s" in said and "Traceback" not in said
    assert bits(training.folder) == undisturbed


def test_a_training_that_is_killed_fails_and_at_last_ends_is_one_run_and_says_so(tmp_path, monkeypatch):
    store = fresh_store(monkeypatch, tmp_path)
    trains = (
        "import json, sys, time; from nemesis.training import live; live.AFTER_S = 0.0\n"
        "live.LiveCurve(*json.loads(sys.argv[1])).show(json.loads(sys.argv[2])); time.sleep(3600)"
    )
    told, curve = ("small", "NEMESIS", RUN, IDENTITY), [{"step": step, "loss": 1.0 / step} for step in STEPS]
    killed = subprocess.Popen([sys.executable, "-c", trains, json.dumps(told), json.dumps(curve[:1])])
    wait_for((tmp_path / "results" / "mlflow.db").exists)
    client = client_of(store)
    wait_for(lambda: [run for run in logged(client, "small") if shown(client, run) == curve[:1]])
    killed.kill()
    killed.wait()
    wait_for(lambda: [run.info.status for run in logged(client, "small")] == ["KILLED"])

    def fail():
        with LiveCurve(*told) as live:
            live.show(curve[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    (run,) = logged(client, "small")
    assert run.info.status == "FAILED" and shown(client, run) == curve[:2]
    with LiveCurve(*told) as live:
        live.show(curve)
    (run,) = logged(client, "small")
    assert run.info.status == "FINISHED" and shown(client, run) == curve


def test_many_at_once_on_a_fresh_store_all_arrive(tmp_path, monkeypatch):
    store = fresh_store(monkeypatch, tmp_path)
    curve = [{"step": step, "loss": 1.0 / step} for step in STEPS]
    with ExitStack() as ending:
        for seed in range(4):
            ending.enter_context(LiveCurve("small", "NEMESIS", f"nemesis-s{seed}-0", IDENTITY | {"seed": seed})).show(curve)
    client = client_of(store)
    runs = logged(client, "small")
    assert sorted(run.info.run_name for run in runs) == [f"NEMESIS, seed {seed}" for seed in range(4)]
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert [shown(client, run) for run in runs] == [curve] * 4
    assert len(client.search_experiments()) == 2  # and MLflow's own
    assert not list((tmp_path / "results").glob(".mlflow.db.*"))


def test_what_the_pipe_does_not_take_waits(tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nuntil [ -e {tmp_path}/gate ]; do sleep 0.05; done\ncat > {tmp_path}/read\n")
    slow.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(slow))
    curve = [{"step": step, "loss": 1.0 / step} for step in range(1, 20_001)]
    with LiveCurve("small", "NEMESIS", RUN, IDENTITY) as live:
        for points in (1, 10_000, 20_000):
            live.show(curve[:points])
        assert live.sent < len(curve) and len(live.rest) < 100_000
        (tmp_path / "gate").touch()
    *points, end = map(json.loads, (tmp_path / "read").read_text().splitlines())
    assert points == curve and end == {"status": "FINISHED"}


@pytest.mark.parametrize(("experiment", "after_s"), [(None, 0.0), ("small", 3600.0)])
def test_nothing_is_started_unasked_or_for_a_moment(monkeypatch, experiment, after_s):
    monkeypatch.setattr(module, "AFTER_S", after_s)
    with LiveCurve(experiment, "NEMESIS", RUN, IDENTITY) as live:
        live.show([{"step": 10, "loss": 0.5}])
        assert live.process is None


def test_a_view_that_cannot_even_start_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(module.sys, "executable", "/nowhere/python")
    with LiveCurve("small", "NEMESIS", RUN, IDENTITY) as live:
        for _ in range(3):
            live.show([{"step": 10, "loss": 0.5}])
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{RUN}: not shown live:")
