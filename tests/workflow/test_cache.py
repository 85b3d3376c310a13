"""What is computed again, and what is not."""

import json
import os
import re
import shutil
import time

import pytest
from places import CONFIG, REPORT

pytestmark = pytest.mark.workflow


def test_a_run_ends_with_everything_and_says_what_it_did(finished):
    tiny = finished.results / "tiny"
    names = {file.name for folder in ("tables", "figures", "notebooks", "report") for file in (tiny / folder).iterdir()}
    assert {f"main.{ending}" for ending in ("csv", "md", "tex", "html")} <= names
    assert {"reconstructions.png", "training_curves.svg", "index.html", "data.html", "ablation_tables.html"} <= names
    assert set(json.loads((tiny / "tracking.json").read_text())["runs"]) == {
        "report", finished.run_folder("nemesis").name, finished.run_folder("random_vit").name,
    }  # fmt: skip
    assert not (finished.run_folder("nemesis") / "state.pt").exists()
    said = (finished.folder / "output.txt").read_text()
    assert json.loads((tiny / "data" / "audit.json").read_text())["pairs"] == []
    assert "8 of 8 scans are good." in (tiny / "data" / "quality.html").read_text()
    assert "8 cases, 8 to be read" in said and "step 60/60" in said and "superpatches/s" in said
    assert "Traceback" not in said and "Warning" not in said


def test_the_same_command_again_has_nothing_to_do(place):
    before = {p: p.stat().st_mtime_ns for p in place.results.rglob("*")}
    done = place.snakemake()
    assert done.rc == 0 and "Nothing to be done" in done.text
    assert {p: p.stat().st_mtime_ns for p in place.results.rglob("*")} == before


def test_touching_any_file_plans_nothing(place):
    files = [file for file in sorted(place.folder.rglob("*")) if file.is_file() and ".snakemake" not in file.parts]
    for n, file in enumerate(reversed(files)):  # what comes first (data, runs, collected) is the newest: no order saves us
        os.utime(file, (time.time() + n / 1000,) * 2)
    time.sleep(len(files) / 1000)
    assert place.plan().jobs == {}


def test_what_no_number_depends_on_plans_nothing(place):
    shutil.copyfile(place.folder / "tiny.yaml", place.folder / "copy.yaml")
    (place.folder / "tiny.yaml").write_text("extends: copy.yaml\n# another comment\n")
    assert place.plan().jobs == {}
    place.write_config(loader_workers=2, state_every=7, device="auto")
    assert place.plan("--resources", "gpu=4").jobs == {}


def test_a_key_of_the_probe_repeats_evaluation_and_report_only(place):
    place.write_config(probe={**CONFIG["probe"], "folds": 2})
    assert place.plan().jobs == {"evaluate_encoder": 2, **REPORT}
    place.write_config(probe={**CONFIG["probe"], "bootstrap": 200})
    assert place.plan().jobs == REPORT
    place.write_config()
    assert place.plan().jobs == {}


def test_a_key_of_pretraining_repeats_the_runs_it_enters(place):
    place.write_config(pretraining={**CONFIG["pretraining"], "steps": 61})
    assert place.plan().jobs == {"pretrain_method": 1, "evaluate_encoder": 1, **REPORT}


def test_the_wording_of_a_source_file_plans_nothing_and_its_version_what_it_stands_for(place):
    folders = ("evaluation", "training", "data", "models", "report", "methods")
    for file in [file for folder in folders for file in (place.folder / "nemesis" / folder).glob("*.py")]:
        file.write_text(file.read_text() + "\n\n# a remark\n")
    rules = place.folder / "workflow" / "rules" / "evaluate.smk"
    rules.write_text(rules.read_text() + "\n# a remark\n")
    assert place.plan().jobs == {}

    raise_version(place, "evaluation")
    assert place.plan().jobs == {"evaluate_encoder": 2, **REPORT}
    raise_version(place, "training")
    assert place.plan().jobs == {"pretrain_method": 1, "evaluate_encoder": 2, **REPORT}
    raise_version(place, "data")
    jobs = place.plan().jobs
    data = {"ingest_scans": 1, "check_cohort": 1, "write_quality": 1, "audit_pools": 1}
    assert jobs == {**data, "pretrain_method": 1, "evaluate_encoder": 2, **REPORT}


def raise_version(place, stage):
    file = place.folder / "nemesis" / stage / "__init__.py"
    before = file.read_text()
    line = next(line for line in before.splitlines() if re.match("VERSION\\b.*=", line))
    number = int(line.split("=")[1].split("#")[0])
    file.write_text(before.replace(line, f"VERSION: int = {number + 1}"))


def test_a_deleted_table_is_printed_again_without_anything_else(place):
    table = place.results / "tiny" / "tables" / "main.csv"
    table.unlink()
    assert place.plan().jobs.keys() == REPORT.keys() - {"collect_rows"}


def test_a_deleted_notebook_is_run_again_without_anything_else(place):
    (place.results / "tiny" / "notebooks" / "data.html").unlink()
    assert place.plan().jobs == {"run_notebook": 1, "log_tracking": 1}


def test_another_set_of_datasets_is_gathered_anew(place):
    (cohort,) = CONFIG["datasets"]
    place.write_config(datasets=[cohort, {**cohort, "name": "more", "seed": 7}])
    assert place.plan().jobs["check_cohort"] == 1
    assert place.snakemake("ingest_all").rc == 0
    place.write_config()
    assert "check_cohort" in place.plan().jobs


def test_a_tracking_server_named_later_is_filled(place, monkeypatch):
    monkeypatch.setattr(
        type(place), "env", property(lambda self, env=place.env: {**env, "MLFLOW_TRACKING_URI": "sqlite:///other.db"})
    )
    assert place.plan().jobs == {"log_tracking": 1}


def test_a_deleted_store_is_made_again_without_training_again(place):
    (store,) = (place.results / "data").glob("phantom-*")
    shutil.rmtree(store)
    assert place.snakemake("--forcerun", "ingest_scans", "--until", "check_cohort").rc == 0
    assert list(store.glob("*.b2nd"))
    assert "pretrain_method" not in place.plan().jobs
