"""The published experiment is planned on a machine that has none of its scans, and runs on none."""

import sys

import pytest

pytestmark = pytest.mark.workflow
PAPER = ("--configfile", "config/paper.yaml", "--cores", "2")


def test_a_dry_run_plans_the_whole_paper_and_leaves_no_trace(fresh):
    done = fresh.run(sys.executable, "-m", "snakemake", "--dry-run", *PAPER)
    jobs = done.jobs
    assert jobs["ingest_scans"] == 6 and jobs["pretrain_method"] == jobs["evaluate_encoder"] > 70
    assert {"collect_rows", "print_tables", "draw_figures", "write_page"} <= set(jobs)
    assert "NOT REAL SCANS" in done.text and "- BTCV (datasets.BTCV): 30 stand-ins" in done.text
    assert not fresh.results.exists()


def test_without_the_scans_nothing_is_computed(fresh):
    done = fresh.run(sys.executable, "-m", "snakemake", *PAPER)
    assert done.rc != 0 and "- BTCV: does not exist" in done.text and "Traceback" not in done.text
    assert "NOT REAL SCANS" not in done.text and not fresh.results.exists()


def test_the_plan_says_disk_and_gpu_hours_and_what_they_rest_on(fresh):
    done = fresh.run("nemesis", "plan", *PAPER, "--tflops", "50")
    text = " ".join(done.text.split())
    assert done.rc == 0, done.text
    for said in ("NOT REAL SCANS", "GPU hours", "GiB of disk", "not recorded", "at 50 TFLOP/s sustained", "≈"):
        assert said in text, text
    assert not fresh.results.exists()
