"""What `nemesis plan` says is arithmetic on recorded timings."""

import pytest
import yaml

from nemesis.experiment import plan
from nemesis.planning import Cost, Job, _evaluate_key, parse_dry_run, sum_line, wall_seconds

DRY_RUN = """Building DAG of jobs...
[Sun Nov 22 05:16:21 2026]
rule ingest_scans:
    input: results/x/data/phantom.manifest.json
    jobid: 3
    wildcards: dataset=phantom
    resources: tmpdir=/tmp
[Sun Nov 22 05:16:21 2026]
rule pretrain_method:
    output: results/runs/ae-s0-0123456789ab/checkpoint.safetensors
    wildcards: run=ae-s0-0123456789ab
[Sun Nov 22 05:16:21 2026]
localrule check_cohort:
    input: a
[Sun Nov 22 05:16:21 2026]
rule all:
    input: b
"""


def job(rule, run, seconds, threads=1):
    return Job(rule, run, threads, Cost(seconds))


def test_a_dry_run_is_read_job_by_job():
    assert parse_dry_run(DRY_RUN) == [
        ("ingest_scans", "phantom"),
        ("pretrain_method", "ae-s0-0123456789ab"),
        ("check_cohort", ""),
    ]
    assert parse_dry_run("Nothing to be done (all requested files are present and up to date).") == []


def test_independent_runs_share_the_cores_and_chains_stay_in_order():
    jobs = [job("pretrain_method", run, 100) for run in "ab"] + [job("evaluate_encoder", run, 50) for run in "ab"]
    assert wall_seconds(jobs, 2) == pytest.approx(150)
    assert wall_seconds(jobs, 1) == pytest.approx(300)
    assert wall_seconds([job("pretrain_method", run, 100, threads=2) for run in "ab"], 2) == pytest.approx(200)


def test_ingestion_and_report_stand_before_and_after_and_the_unknown_counts_nothing():
    jobs = [job("ingest_scans", "x", 10), job("pretrain_method", "a", None), job("print_tables", "", 5)]
    assert wall_seconds(jobs, 4) == pytest.approx(15)


def test_a_sum_that_lacks_a_job_is_a_lower_bound():
    known = job("print_tables", "", 5)
    assert sum_line([known], 2).startswith("About 5 s")
    assert sum_line([known, job("pretrain_method", "a", None)], 2).startswith("At least 5 s")


def test_recorded_evaluations_are_found_by_what_costs_time(tmp_path):
    def key(subjects=6, pools=None, **probe):
        raw = {
            "experiment": "t",
            "datasets": [{"reader": "phantom", "subjects": subjects}],
            "pools": {"evaluation": 3, **(pools or {})},
            "probe": {"folds": 3, **probe},
            "methods": ["random_vit"],
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        experiment = plan([tmp_path / "config.yaml"], results=tmp_path / "results")
        return _evaluate_key(experiment, experiment.runs[0].identity)

    same = [key(bootstrap=100), key(split_seed=3), key(regularisation=[0.1, 1.0, 2.0, 3.0]), key(positive_voxels=7), key(7)]
    assert set(same) == {key()}
    other = [
        key(folds=2),
        key(draws=1),
        key(label_fractions=[1.0]),
        key(protocols=["knn"]),
        key(threads=2),
        key(regularisation=[1.0]),
    ]
    assert len({key(), *other, key(pools={"evaluation": 4})}) == 8
