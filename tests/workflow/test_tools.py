"""What surrounds a run: its plan, Snakemake's own tools, the bare command."""

import sys
import zipfile

import pytest
from places import REPORT

pytestmark = pytest.mark.workflow


def test_plan_says_what_will_run_and_that_nothing_will(place):
    run = place.forget_training("nemesis")
    todo = place.run("nemesis", "plan", "--configfile", "tiny.yaml", "--cores", "2")
    assert todo.rc == 0, todo.text
    for rule in {"pretrain_method", "evaluate_encoder", *REPORT}:
        assert f" {rule} " in todo.text
    assert "ingest_scans" not in todo.text
    assert "not recorded" in todo.text and f"pretrain_method {run.name}" in " ".join(todo.text.split())


def test_plan_of_a_finished_run(finished):
    done = finished.run("nemesis", "plan", "--configfile", "tiny.yaml")
    assert done.rc == 0 and "Nothing to be done." in done.text


def test_lint_finds_nothing(finished):
    done = finished.snakemake("--lint")
    assert done.rc == 0, done.text


def test_dag_is_a_graph(finished):
    done = finished.snakemake("--forceall", "--dag")
    assert done.rc == 0
    graph = done.text[done.text.index("digraph") :]
    assert graph.rstrip().endswith("}") and "pretrain_method" in graph and "evaluate_encoder" in graph


def test_report_holds_tables_figures_and_page(place):
    done = place.snakemake("--report", "report.zip")
    assert done.rc == 0, done.text
    names = zipfile.ZipFile(place.folder / "report.zip").namelist()
    assert any(name.endswith("report.html") for name in names)
    assert any("main" in name for name in names) and any("reconstructions" in name for name in names)


def test_the_bare_command_plans_the_demo_under_the_profile(fresh):
    done = fresh.run(sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run")
    assert done.jobs["pretrain_method"] == done.jobs["evaluate_encoder"] == 21 and (fresh.results / "demo").is_dir()
    assert "profile profiles/default" in done.text
