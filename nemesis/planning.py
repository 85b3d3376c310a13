"""`nemesis plan`: what will run, about how long, how much disk and memory, told from what the same jobs took before.

``timings.json`` beside this file holds what was recorded for the shipped configurations; `nemesis plan --record` adds a finished
experiment of one's own machine. What nothing recorded covers is estimated (:mod:`nemesis.estimate`), and said to be.
"""

from __future__ import annotations

import csv
import heapq
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from nemesis import estimate
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.backbones import how_to_get
from nemesis.experiment import Experiment, PlannedDataset, plan
from nemesis.files import digest, write_text
from nemesis.models.architecture import Size

TIMINGS = Path(__file__).with_name("timings.json")
RUN_RULES = ("pretrain_method", "evaluate_encoder", "finetune_encoder")  # jobs of a run
NOT_RECORDED = "not recorded"
# what they take depends on the configuration; the rest is fixed
OWN_KEYS = ("ingest_scans", "resample_scans", *RUN_RULES, "search_sweep")


@dataclass(frozen=True)
class Cost:
    """What a job takes; ``seconds`` is None where nothing like it was recorded, and then ``flop`` is estimated."""

    seconds: float | None
    memory_mib: float = 0.0
    disk_mib: float = 0.0
    flop: float = 0.0


@dataclass(frozen=True)
class Job:
    """A job of the workflow: its rule, its dataset or run, the threads it computes with, how early it starts
    (:func:`priority`), and the run whose training it waits for."""

    rule: str
    wildcard: str
    threads: int
    cost: Cost
    priority: float = 0.0
    after: str = ""


def wants_gpu(device: str) -> bool:
    """Whether jobs ask for a GPU under ``device`` of the configuration: with auto, where this machine has one."""
    return device == "cuda" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))


def print_plan(paths: list[Path], overrides: Mapping[str, Any], cores: int, tflops: float) -> None:
    """Print the jobs that are not done yet, by rule, and the sums.

    Args:
        tflops: TFLOP/s that a GPU sustains, for the jobs that were never recorded.

    Raises:
        NemesisError: whatever is wrong with configuration and folders, or with the workflow.
    """
    experiment = plan(paths, overrides, dry_run=True)
    console = Console()
    config = experiment.config
    console.print(f"[bold]{config.experiment}[/bold]: {len(experiment.pretraining)} scans for pretraining, "
                  f"{len(experiment.evaluation)} for evaluation, {len(experiment.run_ids)} runs")  # fmt: skip
    if experiment.lpips is None:
        console.print(how_to_get(config.reconstruction.lpips.network))
    timings = read_timings()
    jobs = [job_of(experiment, rule, wildcard, timings) for rule, wildcard in _pending(paths, overrides, cores)]
    if not jobs:
        console.print("Nothing to be done.")
        return
    time = Column("time, one after another", min_width=len(NOT_RECORDED))
    table = Table(Column("rule", no_wrap=True), "jobs", time, "GPU hours", "peak memory of one", "disk")
    for rule in dict.fromkeys(job.rule for job in jobs):
        of_rule = [job for job in jobs if job.rule == rule]
        table.add_row(
            rule,
            str(len(of_rule)),
            _clock([job.cost.seconds for job in of_rule]),
            _gpu_hours(of_rule, tflops),
            _mib(max(job.cost.memory_mib for job in of_rule)),
            _disk(of_rule),
        )
    console.print(table)
    console.print(sum_line(jobs, cores, tflops))
    unknown = [job for job in jobs if job.cost.seconds is None]
    if unknown:
        console.print(f"Not in this time, as nothing like it was recorded: {_names(unknown)}.")
    if any(job.cost.flop or job.cost.disk_mib for job in unknown):
        checkpoints = [job.cost.disk_mib for job in jobs if job.rule == "pretrain_method"]
        for sentence in estimate.assumptions(tflops, max(checkpoints, default=0.0)):
            console.print(sentence, style="dim")


def record(paths: list[Path], overrides: Mapping[str, Any]) -> None:
    """Add what the jobs of a finished experiment took to ``timings.json``."""
    experiment = plan(paths, overrides)
    timings = read_timings()
    for dataset in experiment.datasets:
        shards = [shard for shard in experiment.shards.values() if shard.dataset is dataset]
        of_shards = [one for shard in shards if (one := _benchmark(experiment, "ingest_scans", shard.name))]
        if len(of_shards) == len(shards) and dataset.cases:
            stored = sum(file.stat().st_size for file in dataset.folder.rglob("*") if file.is_file())
            timings["ingest_scans"][_ingest_key(experiment, dataset)] = {
                "what": f"{dataset.config.name}, a case",
                "seconds": round(sum(one["s"] for one in of_shards) / len(dataset.cases), 4),
                "memory_mib": round(max(one["max_rss"] for one in of_shards)),
                "disk_mib": round(stored / 2**20 / len(dataset.cases), 3),
            }
    for run in map(experiment.run, experiment.run_ids):
        what = f"{run.method} at {run.identity['superpatch']}³"
        measured = _benchmark(experiment, "pretrain_method", run.id)
        if measured:
            seconds = json.loads((experiment.run_folder(run.id) / "timing.json").read_text())
            checkpoint = (experiment.run_folder(run.id) / "checkpoint.safetensors").stat().st_size
            rate = run.identity["pretraining"]["batch_size"] / seconds["superpatches_per_second"] if run.trains else 0.0
            timings["pretrain_method"][_pretrain_key(run.identity)] = {
                "what": f"{what}, a step",
                "seconds": round(rate, 5),
                "start_seconds": round(max(measured["s"] - seconds.get("seconds", 0.0), 0.0), 2),
                "memory_mib": round(measured["max_rss"]),
                "disk_mib": round(checkpoint / 2**20, 3),
            }
        measured, features = _benchmark(experiment, "evaluate_encoder", run.id), experiment.run_folder(run.id) / "features"
        if measured:
            timings["evaluate_encoder"][_evaluate_key(experiment, run.id)] = {
                "what": f"{what}, a patient",
                "seconds": round(measured["s"] / len(experiment.evaluation), 4),
                "memory_mib": round(measured["max_rss"]),
                "disk_mib": round(_size_mib(experiment.evaluation_folder(run.id)) + _size_mib(features), 3),
            }
    for tuning in experiment.tunings:
        measured, spec = _benchmark(experiment, "finetune_encoder", tuning), experiment.finetune_spec(tuning)
        if measured:
            timings["finetune_encoder"][_finetune_key(spec)] = {
                "what": f"{spec['identity']['method']} at {spec['identity']['superpatch']}³, {spec['arm']}, a step",
                "seconds": round(measured["s"] / spec["finetune"]["steps"], 4),
                "memory_mib": round(measured["max_rss"]),
                "disk_mib": round(_size_mib(experiment.finetune_folder(tuning)), 3),
            }
    benchmarks = experiment.folder / "benchmarks"
    for path in sorted(benchmarks.rglob("*.tsv")):
        rule, *wildcard = path.relative_to(benchmarks).with_suffix("").parts
        measured = _benchmark(experiment, rule, "/".join(wildcard))
        if measured and rule not in OWN_KEYS:
            entry = {"seconds": round(measured["s"], 2), "memory_mib": round(measured["max_rss"])}
            timings["fixed"][" ".join((rule, *wildcard))] = entry
    write_text(TIMINGS, json.dumps(timings, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_timings() -> dict[str, Any]:
    """``timings.json``: by rule, what jobs took that were recorded."""
    empty: dict[str, Any] = {rule: {} for rule in ("ingest_scans", *RUN_RULES, "fixed")}
    return {**empty, **json.loads(TIMINGS.read_text(encoding="utf-8"))} if TIMINGS.exists() else empty


def sum_line(jobs: list[Job], cores: int, tflops: float) -> str:
    """Time, GPU hours and disk of all jobs in a sentence, which says "at least" where some job was never recorded."""
    about = "At least" if any(job.cost.seconds is None for job in jobs) else "About"
    time = f"{about} {_duration(wall_seconds(jobs, cores))} on {cores} cores like those of the recording"
    gpu = f", {_gpu_hours(jobs, tflops)} GPU hours" if any(job.cost.flop for job in jobs) else ""
    return f"{time}{gpu}, {_disk(jobs)} of disk."


def wall_seconds(jobs: list[Job], cores: int) -> float:
    """How long the recorded jobs take on so many cores: the jobs of runs by priority as cores fall free, all others one after
    another."""
    alone = sum(job.cost.seconds or 0.0 for job in jobs if job.rule not in RUN_RULES)
    waiting = sorted((job for job in jobs if job.rule in RUN_RULES), key=lambda job: -job.priority)
    untrained = {job.wildcard for job in waiting if job.rule == RUN_RULES[0]}
    now, free, busy = 0.0, cores, list[tuple[float, int, Job]]()
    while waiting or busy:
        for job in waiting.copy():
            if min(job.threads, cores) <= free and job.after not in untrained:
                free -= min(job.threads, cores)
                waiting.remove(job)
                heapq.heappush(busy, (now + (job.cost.seconds or 0.0), len(waiting), job))
        now, _, ended = heapq.heappop(busy)
        free += min(ended.threads, cores)
        untrained.discard(ended.wildcard)
    return alone + now


def job_of(experiment: Experiment, rule: str, wildcard: str, timings: Mapping[str, Any]) -> Job:
    """A job of the workflow with what it takes: as recorded in ``timings`` or, where nothing is, as estimated."""
    threads, after, cost = 1, "", _cost_on_record(experiment, rule, wildcard, timings)
    if rule in ("ingest_scans", "resample_scans"):
        cost = cost or _estimated(estimate.ingestion(len(experiment.shards[wildcard].cases)))
    elif rule == "pretrain_method":
        run = experiment.run(wildcard)
        threads, cost = run.threads, cost or _estimated(estimate.training(run.identity))
    elif rule == "evaluate_encoder":
        spec = experiment.evaluate_spec(wildcard)
        threads, after = spec["probe"]["threads"], wildcard
        cost = cost or _estimated(estimate.evaluation(spec, _volumes(experiment, timings)))
    elif rule == "finetune_encoder":
        spec = experiment.finetune_spec(wildcard)
        threads, cost = spec["finetune"]["threads"], cost or _estimated(estimate.finetuning(spec))
        after = wildcard.partition("/")[0] if "checkpoint" in spec else ""  # a control starts from random weights
    elif rule == "search_sweep":
        cost = _estimated(estimate.search(experiment.search_spec(), _volumes(experiment, timings)))
    early = priority(experiment, rule, wildcard, timings) if rule in RUN_RULES else 0.0
    return Job(rule, wildcard, threads, cost or Cost(None), early, after)


def priority(experiment: Experiment, rule: str, wildcard: str, timings: Mapping[str, Any]) -> float:
    """How early a run's job starts: the seconds recorded for it and, of a training, for the longest job that waits for it. So no
    core is idle at the end while a long chain goes on. Without records trainings come first, and controls that cost as much."""

    def seconds(rule: str, wildcard: str) -> float:
        cost = _cost_on_record(experiment, rule, wildcard, timings)
        return (cost.seconds or 0.0) if cost else 0.0

    if rule == "finetune_encoder":
        _, arm = experiment.tunings[wildcard]
        return seconds(rule, wildcard) + (1.0 if arm == "scratch_matched" else 0.0)
    if rule != "pretrain_method":
        return seconds(rule, wildcard)
    tunings = [name for name, (run, arm) in experiment.tunings.items() if run.id == wildcard and arm == "pretrained"]
    waiting = [("evaluate_encoder", wildcard), *(("finetune_encoder", name) for name in tunings)]
    return 1.0 + seconds(rule, wildcard) + max(seconds(*job) for job in waiting)


def _cost_on_record(experiment: Experiment, rule: str, wildcard: str, timings: Mapping[str, Any]) -> Cost | None:
    entry, times, disk_times = None, 1, 1
    if rule == "ingest_scans":
        shard = experiment.shards[wildcard]
        entry, times = timings[rule].get(_ingest_key(experiment, shard.dataset)), len(shard.cases)
        disk_times = times
    elif rule == "pretrain_method":
        run = experiment.run(wildcard)
        entry, times = timings[rule].get(_pretrain_key(run.identity)), run.identity["pretraining"]["steps"] if run.trains else 0
    elif rule == "evaluate_encoder":
        entry, times = timings[rule].get(_evaluate_key(experiment, wildcard)), len(experiment.evaluation)
    elif rule == "finetune_encoder":
        spec = experiment.finetune_spec(wildcard)
        entry, times = timings[rule].get(_finetune_key(spec)), spec["finetune"]["steps"]
    elif rule not in OWN_KEYS:
        entry = timings["fixed"].get(f"{rule} {wildcard}".strip())
    if entry is None:
        return None
    seconds = entry.get("start_seconds", 0.0) + times * entry["seconds"]
    return Cost(seconds, entry["memory_mib"], disk_times * entry.get("disk_mib", 0.0))


def _volumes(experiment: Experiment, timings: Mapping[str, Any]) -> list[Size]:
    """Voxels (D, H, W) of every scan of the evaluation pool, as far as its dataset was recorded."""
    stored = {
        dataset.config.name: timings["ingest_scans"].get(_ingest_key(experiment, dataset), {}).get("disk_mib")
        for dataset in experiment.datasets
    }
    return [estimate.volume(stored[case.dataset]) for case in experiment.evaluation]


def _estimated(guess: estimate.Estimate) -> Cost:
    return Cost(None, disk_mib=guess.disk_mib, flop=guess.flop)


def _ingest_key(experiment: Experiment, dataset: PlannedDataset) -> str:
    spacing = getattr(dataset.config, "base_spacing_mm", None)
    return digest([dataset.config.reader, dataset.config.name, spacing, experiment.config.preparation.spacing_mm])


def _pretrain_key(identity: Mapping[str, Any]) -> str:
    recipe = identity["pretraining"] or {}
    cost = {name: recipe.get(name) for name in ("batch_size", "compile", "precision", "threads")}
    return digest([identity["method"], identity["settings"], identity["superpatch"], cost])


def _evaluate_key(experiment: Experiment, run_id: str) -> str:
    """What a patient's evaluation costs depends on; seeds, thresholds, values of C and the bootstrap cost nothing here."""
    spec = experiment.evaluate_spec(run_id)
    identity, probe = spec["identity"], spec["probe"]
    cost = {name: probe[name] for name in ("folds", "draws", "label_fractions", "protocols", "precision", "threads")}
    cost["regularisation"] = len(set(probe["regularisation"]))
    if not spec.get("reconstruction", {}).get("unmasked", True):
        cost["unmasked"] = False
    if stitched := spec.get("reconstruction", {}).get("stitched"):
        cost["stitched"] = stitched if stitched == "all" else len(stitched)
    if "lpips" in spec:
        cost["lpips"] = spec["lpips"]["network"]
    pool = [case.dataset for case in experiment.evaluation]
    scans = [[_ingest_key(experiment, d), pool.count(d.config.name)] for d in experiment.datasets if d.config.name in pool]
    return digest([identity["method"], identity["settings"], identity["superpatch"], cost, scans])


def _finetune_key(spec: Mapping[str, Any]) -> str:
    """What a step of a job of fine-tuning, its part of every look and test included, costs depends on; of the control at matched
    compute, whose steps are more than the recipe's, that number and the pretraining's length, too."""
    identity, recipe, matched = spec["identity"], spec["finetune"], spec["arm"] == "scratch_matched"
    free = {"weight_decay", "clip_norm", "warmup_fraction", "fixed_learning_rate", "centred", "surface_tolerance_mm"}
    free |= set() if matched else {"steps"}
    cost = {name: value for name, value in recipe.items() if name not in free} | {"learning_rates": len(recipe["learning_rates"])}
    pretraining = {name: (identity["pretraining"] or {}).get(name) for name in ("steps", "batch_size")}
    run = [identity[name] for name in ("method", "settings", "superpatch")]
    return digest([run, spec["arm"], pretraining if matched else None, cost, spec["folds"]])


def _pending(paths: list[Path], overrides: Mapping[str, Any], cores: int) -> list[tuple[str, str]]:
    """(rule, dataset, run or whatever it is made for) of every job that Snakemake would run."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", str(cores), "--configfile", *map(str, paths)]
    if overrides:
        command += ["--config", *(f"{name}={json.dumps(value)}" for name, value in overrides.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stderr + done.stdout  # what went wrong stands at the end of the latter
    if done.returncode:
        raise NemesisError(Fault("snakemake --dry-run", text.strip()[-2000:], "Run it in the folder that holds the Snakefile"))
    return parse_dry_run(text)


def parse_dry_run(text: str) -> list[tuple[str, str]]:
    """(rule, value of its first wildcard or nothing) of every job in the output of a dry run; targets, which make no file, are
    no jobs."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", "\n" + text)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)
        wildcard = re.search(r"^ +wildcards: \w+=([^\s,]+)", block, re.MULTILINE)
        if rule and re.search(r"^ +output: ", block, re.MULTILINE):
            jobs.append((rule.group(1), wildcard.group(1) if wildcard else ""))
    return jobs


def _benchmark(experiment: Experiment, rule: str, wildcard: str) -> dict[str, float] | None:
    path = experiment.folder / "benchmarks" / (f"{rule}/{wildcard}.tsv" if wildcard else f"{rule}.tsv")
    if not path.exists():
        return None
    row = next(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    return {name: float(row[name]) if row[name] not in ("-", "NA") else 0.0 for name in ("s", "max_rss")}


def _size_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def _names(jobs: list[Job], most: int = 8) -> str:
    if len(jobs) <= most:
        return ", ".join(sorted(f"{job.rule} {job.wildcard}".strip() for job in jobs))
    return ", ".join(f"{count} {rule}" for rule, count in Counter(job.rule for job in jobs).items())


def _clock(seconds: list[float | None]) -> str:
    known = [s for s in seconds if s is not None]
    if not known:
        return NOT_RECORDED
    return _duration(sum(known)) + (f" + {len(seconds) - len(known)} {NOT_RECORDED}" if len(known) < len(seconds) else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gpu_hours(jobs: list[Job], tflops: float) -> str:
    hours = sum(job.cost.flop for job in jobs) / (tflops * 1e12 * 3600)
    return f"≈ {hours:.1f}" if hours >= 1 else f"≈ {hours:.2g}" if hours else "–"


def _disk(jobs: list[Job]) -> str:
    estimated = any(job.cost.disk_mib for job in jobs if job.cost.seconds is None)
    return ("≈ " if estimated else "") + _mib(sum(job.cost.disk_mib for job in jobs))


def _mib(mib: float) -> str:
    if not mib:
        return "–"
    return f"{mib:.0f} MiB" if mib < 10240 else f"{mib / 1024:.1f} GiB"
