"""What `nemesis plan` says is arithmetic: on recorded timings and, where there are none, on counted FLOP and stated sizes."""

import json
import math
from pathlib import Path

import pytest
import yaml

from nemesis import estimate, planning
from nemesis.evaluation.cost import VOLUME, superpatches
from nemesis.evaluation.downstream import segmenter_macs
from nemesis.evaluation.formula import by_formula
from nemesis.experiment import plan
from nemesis.method import create
from nemesis.planning import Cost, Job, _evaluate_key, job_of, parse_dry_run, sum_line, wall_seconds

CONFIGS = sorted(Path("config").glob("*.yaml"))
NOTHING = {"ingest_scans": {}, "pretrain_method": {}, "evaluate_encoder": {}, "fixed": {}}
DRY_RUN = """Building DAG of jobs...
[Sun Nov 22 05:16:21 2026]
rule ingest_scans:
    input: results/x/data/phantom/0.manifest.json
    output: results/x/data/phantom/0.verdicts.json
    jobid: 3
    wildcards: shard=phantom/0
    resources: tmpdir=/tmp
[Sun Nov 22 05:16:21 2026]
rule pretrain_method:
    output: results/runs/ae-s0-0123456789ab/checkpoint.safetensors
    wildcards: run=ae-s0-0123456789ab
[Sun Nov 22 05:16:21 2026]
localrule check_cohort:
    input: a
    output: b
[Sun Nov 22 05:16:21 2026]
rule of_somebody_else:
    output: c
    wildcards: thing=one, other=two
[Sun Nov 22 05:16:21 2026]
rule all:
    input: b
"""


@pytest.fixture
def planned(tmp_path):
    def run(**top):
        raw = {
            "experiment": "t",
            "datasets": [{"reader": "phantom", "subjects": 8}],
            "pools": {"evaluation": 3},
            "probe": {"folds": 3},
            "superpatch": 32,
            "pretraining": {"steps": 70, "batch_size": 4},
            "methods": [
                {"name": "nemesis", "settings": {"embed_dim": 64, "depth": 2, "decoder_dim": 32}},
                {"name": "random_vit", "settings": {"embed_dim": 64, "depth": 2}},
            ],
            **top,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
        return plan([tmp_path / "config.yaml"], results=tmp_path / "results")

    return run


def job(rule, run, seconds, threads=1, priority=0.0, after=""):
    return Job(rule, run, threads, Cost(seconds), priority, after)


def test_a_dry_run_is_read_job_by_job_whoever_wrote_the_rule():
    assert parse_dry_run(DRY_RUN) == [
        ("ingest_scans", "phantom/0"),
        ("pretrain_method", "ae-s0-0123456789ab"),
        ("check_cohort", ""),
        ("of_somebody_else", "one"),
    ]
    assert parse_dry_run("Nothing to be done (all requested files are present and up to date).") == []


def test_independent_runs_share_the_cores_and_chains_stay_in_order():
    jobs = [job("evaluate_encoder", run, 50, after=run) for run in "ab"] + [job("pretrain_method", run, 100) for run in "ab"]
    assert wall_seconds(jobs, 2) == pytest.approx(150)
    assert wall_seconds(jobs, 1) == pytest.approx(300)
    assert wall_seconds([job("pretrain_method", run, 100, threads=2) for run in "ab"], 2) == pytest.approx(200)


def test_fine_tuning_waits_for_its_training_but_not_for_the_evaluation():
    later = [job("finetune_encoder", "a/pretrained", 50, after="a"), job("evaluate_encoder", "a", 50, after="a")]
    training, control = job("pretrain_method", "a", 100), job("finetune_encoder", "a/scratch", 100)
    assert wall_seconds([*later, training], 2) == pytest.approx(150)
    assert wall_seconds([*later, training, control], 2) == pytest.approx(150), "a control waits for no training"
    assert wall_seconds(later, 2) == pytest.approx(50), "the training was done before"


def test_a_plan_starts_jobs_in_the_order_that_the_workflow_does():
    short = [job("pretrain_method", run, 50, priority=50) for run in "abcd"]
    for priority, wall in ((101, 150), (1, 200)):
        assert wall_seconds([*short, job("pretrain_method", "long", 100, priority=priority)], 2) == pytest.approx(wall)


def test_fine_tuning_is_estimated_by_its_trainings_and_told_as_recorded(planned):
    recipe = {"steps": 10, "batch_size": 4, "learning_rates": [1e-3, 1e-4], "controls": ["scratch_matched"], "checks": 1}
    experiment = planned(finetune=recipe | {"folds_held_out": 2})
    run = next(run for run in experiment.runs if run.method == "nemesis")
    pretrained, control, _ = experiment.tunings
    assert [name.rpartition("-")[0] for name in experiment.tunings] == [
        f"{run.id}/pretrained", f"{run.id}/scratch_matched", f"{experiment.runs[1].id}/pretrained",
    ]  # fmt: skip
    method = create("nemesis", run.identity["settings"], 32)
    cost = estimate._cost(run.identity)
    one, matched = (job_of(experiment, "finetune_encoder", name, NOTHING | {"finetune_encoder": {}}).cost
                    for name in (pretrained, control))  # fmt: skip
    segmenter = segmenter_macs(method, len(experiment.config.organs))
    assert one.flop == 6 * (2 * 2) * 40 * (cost.encode + segmenter) and method.card.pretext
    assert matched.flop == one.flop + 2 * 6 * (2 * 2) * 70 * 4 * cost.pretext, "for organ presence and for segmentation"
    key = planning._finetune_key(experiment.finetune_spec(pretrained))
    recorded = NOTHING | {"finetune_encoder": {key: {"seconds": 3.3, "memory_mib": 700}}}
    assert job_of(experiment, "finetune_encoder", pretrained, recorded).cost.seconds == 10 * 3.3
    longer = planned(finetune=recipe | {"folds_held_out": 2, "steps": 20})
    assert job_of(longer, "finetune_encoder", next(iter(longer.tunings)), recorded).cost.seconds == 20 * 3.3
    assert job_of(longer, "finetune_encoder", list(longer.tunings)[1], recorded).cost.seconds is None, "at matched compute"
    fewer = planned(finetune=recipe | {"seeds": 1}, seeds=[0, 1])
    assert len(fewer.runs) == 4 and len(fewer.tunings) == 3


def test_what_takes_longest_with_all_that_waits_for_it_starts_first(planned):
    experiment = planned(finetune={"steps": 10, "batch_size": 4, "controls": ["scratch", "scratch_matched"]})
    (run, other), names = experiment.runs[:2], list(experiment.tunings)
    (pretrained,) = [name for name in names if name.startswith(f"{run.id}/pretrained")]
    (scratch,) = [name for name in names if name.startswith(f"{run.id}/scratch-")]
    (matched,) = [name for name in names if name.startswith(f"{run.id}/scratch_matched-")]

    def at(timings, *job):
        return planning.priority(experiment, *job, NOTHING | {"finetune_encoder": {}} | timings)

    assert at({}, "evaluate_encoder", run.id) == at({}, "finetune_encoder", scratch) == 0 < at({}, "pretrain_method", other.id)
    assert at({}, "finetune_encoder", matched) == at({}, "pretrain_method", run.id), "which costs as much as pretraining"
    entry = {"memory_mib": 7}
    keys = {name: planning._finetune_key(experiment.finetune_spec(name)) for name in (pretrained, scratch)}
    timings = {
        "pretrain_method": {planning._pretrain_key(run.identity): entry | {"seconds": 0.5, "start_seconds": 4.0}},
        "evaluate_encoder": {_evaluate_key(experiment, run.id): entry | {"seconds": 2.0}},
        "finetune_encoder": {keys[pretrained]: entry | {"seconds": 5.0}, keys[scratch]: entry | {"seconds": 90.0}},
    }
    assert at(timings, "evaluate_encoder", run.id) == 3 * 2
    assert at(timings, "finetune_encoder", scratch) == 900  # which waits for no training
    assert at(timings, "pretrain_method", run.id) == pytest.approx(4 + 70 * 0.5 + 50, abs=1)
    assert at(timings, "pretrain_method", run.id) > at(timings, "pretrain_method", other.id)
    names = {"pretrain_method": run.id, "evaluate_encoder": run.id, "finetune_encoder": pretrained}
    jobs = [job_of(experiment, *one, NOTHING | timings) for one in (*names.items(), ("finetune_encoder", scratch))]
    assert [one.after for one in jobs] == ["", run.id, run.id, ""]
    assert [one.priority for one in jobs] == [at(timings, one.rule, one.wildcard) for one in jobs]


def test_ingestion_and_report_stand_before_and_after_and_the_unknown_counts_nothing():
    jobs = [job("ingest_scans", "x", 10), job("pretrain_method", "a", None), job("print_tables", "", 5)]
    assert wall_seconds(jobs, 4) == pytest.approx(15)


def test_a_sum_that_lacks_a_job_is_a_lower_bound():
    known = job("print_tables", "", 5)
    assert sum_line([known], 2, 20).startswith("About 5 s")
    assert sum_line([known, job("pretrain_method", "a", None)], 2, 20).startswith("At least 5 s")


def test_gpu_hours_are_the_estimated_flop_at_the_stated_throughput():
    recorded = Job("print_tables", "", 1, Cost(5, disk_mib=10))
    guessed = Job("pretrain_method", "a", 1, Cost(None, disk_mib=30, flop=36e15))
    assert "≈ 2.5 GPU hours, ≈ 40 MiB of disk" in sum_line([recorded, guessed], 2, 4)
    assert "≈ 0.5 GPU hours" in sum_line([guessed], 2, 20)
    assert "GPU" not in sum_line([recorded], 2, 4) and "≈" not in sum_line([recorded], 2, 4)


def test_the_flop_of_an_unrecorded_training_are_three_passes_over_what_it_sees(planned):
    experiment = planned()
    nemesis, random_vit = experiment.runs
    method = create("nemesis", nemesis.identity["settings"], 32)
    macs = by_formula(method.architecture, method.masking, reference=False).total
    cost = job_of(experiment, "pretrain_method", nemesis.id, NOTHING).cost
    assert cost.seconds is None
    assert cost.flop == 2 * 3 * macs * 70 * 4
    numbers = sum(parameter.numel() for parameter in method.build().parameters())
    assert cost.disk_mib == pytest.approx(4 * numbers / 2**20)
    assert job_of(experiment, "pretrain_method", random_vit.id, NOTHING).cost.flop == 0


def test_the_flop_of_the_released_network_are_those_counted_by_hand(planned):
    settings = {"preset": "official", "patch": 16}
    experiment = planned(superpatch=128, methods=[{"name": "nemesis", "settings": settings}])
    flop = job_of(experiment, "pretrain_method", experiment.runs[0].id, NOTHING).cost.flop
    assert flop == pytest.approx(6 * 16.9e9 * 280, rel=0.005)  # 16.9 G multiply–accumulates at r = 0.5


def test_the_flop_of_an_unrecorded_evaluation_are_one_pass_over_every_superpatch(planned):
    experiment = planned()
    nemesis, random_vit = experiment.runs
    method = create("nemesis", nemesis.identity["settings"], 32)
    masked = by_formula(method.architecture, method.masking, reference=False).total
    encode = by_formula(method.architecture, reference=False).encoder.total
    n = 3 * superpatches(32)
    cost = job_of(experiment, "evaluate_encoder", random_vit.id, NOTHING).cost
    assert (cost.seconds, cost.flop) == (None, 2 * encode * n)
    assert cost.disk_mib == pytest.approx(4 * 64 * n / 2**20)
    assert job_of(experiment, "evaluate_encoder", nemesis.id, NOTHING).cost.flop == 2 * (encode + masked + encode + masked) * n
    per_pixel = 3 * 64 * 9 + 64**2 * 9 + (64 * 128 + 128**2) * 9 / 4 + (128 * 256 + 2 * 256**2) * 9 / 16
    per_pixel += (256 * 512 + 2 * 512**2) * 9 / 64 + 3 * 512**2 * 9 / 256  # of VGG16's convolutions
    spec = experiment.evaluate_spec(nemesis.id)
    for stitched, scans in (("all", 3 + 3), ([], 3 + 1)):
        seen = spec | {"lpips": {"network": "vgg"}, "reconstruction": spec["reconstruction"] | {"stitched": stitched}}
        more = estimate.evaluation(seen, [VOLUME] * 3).flop - estimate.evaluation(spec, [VOLUME] * 3).flop
        assert more == pytest.approx(2 * 3 * 3 * scans * math.prod(VOLUME) * per_pixel)
    hidden = planned(reconstruction={"unmasked": False})
    assert job_of(hidden, "evaluate_encoder", nemesis.id, NOTHING).cost.flop == 2 * (encode + masked) * n


def test_what_no_mask_hides_costs_no_more_than_is_taken_for_it():
    for settings in ({}, {"preset": "official"}, {"preset": "maesil"}):
        method = create("nemesis", settings, 128)
        whole = by_formula(method.architecture, reference=False)
        assert whole.total <= whole.encoder.total + by_formula(method.architecture, method.masking, reference=False).total


def test_scans_of_a_recorded_dataset_are_taken_as_large_as_they_were(planned):
    experiment = planned()
    (dataset,) = experiment.datasets
    small = {**NOTHING, "ingest_scans": {planning._ingest_key(experiment, dataset): {"disk_mib": 100 / 4**3}}}
    flop = {
        name: job_of(experiment, "evaluate_encoder", experiment.runs[1].id, timings).cost.flop
        for name, timings in (("unknown", NOTHING), ("small", small))
    }
    assert estimate.volume(100 / 4**3) == (100, 128, 128)  # a byte per voxel
    assert flop["small"] / flop["unknown"] == superpatches(32, (100, 128, 128)) / superpatches(32)


def test_stored_scans_are_estimated_by_their_voxels(planned):
    cost = job_of(planned(), "ingest_scans", "phantom/0", NOTHING).cost
    voxels = VOLUME[0] * VOLUME[1] * VOLUME[2]
    assert (cost.seconds, cost.flop) == (None, 0) and cost.disk_mib == pytest.approx(8 * voxels / 2**20)


def test_a_search_is_estimated_as_its_costliest_trials(planned):
    sweep = {"embed_dims": [64, 128], "mask_ratios": [0.25, 0.75], "search": {"trials": 6}}
    experiment = planned(sweep=sweep, pools={"evaluation": 9}, datasets=[{"reader": "phantom", "subjects": 20}])
    (template,) = [run for run in experiment.runs if run.trains]
    widest = {**template.identity["settings"], "embed_dim": 128, "plane_mask_ratio": 0.25, "axis_mask_ratio": 0.25}
    one = estimate.training({**template.identity, "settings": widest})
    cost = job_of(experiment, "search_sweep", "", NOTHING).cost
    scored = {"identity": {**template.identity, "settings": widest}}
    scoring = estimate.evaluation(scored, [VOLUME] * 9)  # once at either rung, once in the end
    assert cost.seconds is None and cost.flop == 6 * (one.flop + 3 * scoring.flop) > 0
    assert cost.disk_mib == pytest.approx(6 * (3 * one.disk_mib + scoring.disk_mib))


def test_recomputed_activations_cost_another_forward_pass(planned):
    (plain, again) = (
        planned(methods=[{"name": "nemesis", "settings": {"embed_dim": 64, "depth": 1, "recompute": recompute}}]).runs[0]
        for recompute in (False, True)
    )
    flop = [estimate.training(run.identity).flop for run in (plain, again)]
    assert flop[1] == flop[0] * 4 / 3


def test_what_is_recorded_is_not_estimated(planned):
    experiment = planned()
    run = experiment.runs[0]
    measured = {"seconds": 0.5, "memory_mib": 7, "disk_mib": 3}
    timings = {
        **NOTHING,
        "pretrain_method": {planning._pretrain_key(run.identity): {**measured, "start_seconds": 4}},
        "evaluate_encoder": {_evaluate_key(experiment, run.id): measured},
        "fixed": {"run_notebook data": measured},
    }
    assert job_of(experiment, "pretrain_method", run.id, timings).cost == Cost(4 + 70 * 0.5, 7, 3)
    assert job_of(experiment, "evaluate_encoder", run.id, timings).cost == Cost(3 * 0.5, 7, 3)
    assert job_of(experiment, "run_notebook", "data", timings).cost == Cost(0.5, 7, 3)
    assert job_of(experiment, "run_notebook", "other", timings).cost == Cost(None)


def test_jobs_of_every_rule_are_recorded(planned, tmp_path, monkeypatch):
    planned()
    monkeypatch.setattr(planning, "TIMINGS", tmp_path / "timings.json")
    monkeypatch.chdir(tmp_path)
    for name in ("print_tables", "of_somebody_else/one", "search_sweep"):
        path = tmp_path / "results" / "t" / "benchmarks" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s\tmax_rss\n3.0\t20.0\n")
    planning.record([tmp_path / "config.yaml"], {})
    recorded = json.loads((tmp_path / "timings.json").read_text())
    expected = {"seconds": 3.0, "memory_mib": 20}
    assert recorded["fixed"] == {"print_tables": expected, "of_somebody_else one": expected}  # a search never costs the same


def test_recorded_evaluations_are_found_by_what_costs_time(planned):
    def key(subjects=6, pools=None, methods=("random_vit",), reconstruction=None, **probe):
        datasets = [{"reader": "phantom", "subjects": subjects}]
        pools = {"evaluation": 3, **(pools or {})}
        probe = {"folds": 3, **probe}
        experiment = planned(
            datasets=datasets, pools=pools, probe=probe, methods=list(methods), reconstruction=reconstruction or {}
        )
        return _evaluate_key(experiment, experiment.runs[0].id)

    same = [key(bootstrap=100), key(split_seed=3), key(regularisation=[0.1, 1.0, 2.0, 3.0]), key(positive_voxels=7), key(7)]
    assert set(same) == {key()}
    other = [
        key(folds=2),
        key(draws=1),
        key(label_fractions=[1.0]),
        key(protocols=["knn"]),
        key(threads=2),
        key(regularisation=[1.0]),
        key(methods=["ae"]),
        key(methods=["ae"], reconstruction={"unmasked": False}),
        key(methods=["ae"], reconstruction={"stitched": []}),
    ]
    assert len({key(), *other, key(pools={"evaluation": 4})}) == 11


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_plans_without_any_data(path, tmp_path):
    experiment = plan([path], {"data_root": str(tmp_path / "nowhere")}, tmp_path / "results", dry_run=True)
    assert experiment.runs and experiment.pretraining and experiment.evaluation
    pretraining, evaluation = ({case.name for case in pool} for pool in (experiment.pretraining, experiment.evaluation))
    if path.name == "real_ct.yaml":  # the sample's three scans are all that it expects, and are in both pools
        assert pretraining == evaluation and len(evaluation) == 3
    else:
        assert not pretraining & evaluation


def test_only_what_asks_for_them_has_a_sweep_and_ablations(tmp_path):
    parts = {}
    for name in ("phantom_margin", "real_ct", "openkbp", "config", "paper", "official"):
        experiment = plan([Path(f"config/{name}.yaml")], {"data_root": "nowhere"}, tmp_path, dry_run=True)
        parts[name] = {run.part for run in experiment.runs}
    for name in ("phantom_margin", "real_ct", "openkbp"):
        assert parts[name] == {"methods"}
    for name in ("config", "paper", "official"):
        assert parts[name] == {"methods", "sweep", "ablations"}


@pytest.fixture(params=["paper", "official"])
def full_scale(request, tmp_path):
    return plan([Path(f"config/{request.param}.yaml")], {"data_root": "nowhere"}, tmp_path, dry_run=True)


def test_full_scale_is_the_published_amount_of_training(full_scale):
    pool = [case.dataset for case in full_scale.pretraining]
    assert (pool.count("TotalSegmentator"), len(pool)) == (28, 28 + 140)
    assert [case.dataset for case in full_scale.evaluation] == ["BTCV"] * 30
    recipe = full_scale.config.pretraining
    assert recipe.steps * recipe.batch_size == 50 * len(pool)
    trained = {}
    for run in full_scale.runs:
        trained.setdefault((run.part, run.label), []).append(run)
    assert all(len(runs) >= 3 for runs in trained.values())
    wanted = 128**3 * 50 * len(pool)
    for run in full_scale.runs:
        if run.trains:
            identity = run.identity
            method = create(run.method, identity["settings"], identity["superpatch"])
            of_step = method.draw().voxels * identity["pretraining"]["batch_size"]
            assert 0 <= identity["pretraining"]["steps"] * of_step - wanted < of_step, run.label  # the last step may go beyond


def test_masking_strategies_at_full_scale_hide_the_same_share(full_scale):
    runs = [run for run in full_scale.runs if run.part == "ablations" and run.place["group"] in ("", "masking")]
    methods = [create(run.method, run.identity["settings"], run.identity["superpatch"]) for run in runs]
    assert {method.masking.hidden_share(method.architecture.grid) for method in methods} == {0.75}


def test_a_plan_says_that_lpips_will_not_be_measured_and_how_it_could_be(tmp_path, monkeypatch, capsys):
    config = Path("config/config.yaml").resolve()
    monkeypatch.chdir(tmp_path)  # planning writes into results/
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(planning, "_pending", lambda paths, overrides, cores: [])
    planning.print_plan([config], {}, cores=2, tflops=1.0)
    said = " ".join(capsys.readouterr().out.split())
    assert "LPIPS not measured: put https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in said
