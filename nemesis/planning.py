"""`nemesis plan`: what will run, about how long, how much disk and memory, told from what the same jobs took before.

``timings.json`` beside this file holds what was recorded for the shipped configurations; `nemesis plan --record` adds a finished
experiment of one's own machine.
"""

from __future__ import annotations

import csv
import heapq
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemesis.errors import Fault, NemesisError
from nemesis.experiment import Experiment, PlannedDataset, plan
from nemesis.files import digest, write_text

TIMINGS = Path(__file__).with_name("timings.json")
RULES = (
    "ingest_scans", "check_cohort", "pretrain_method", "evaluate_encoder", "collect_rows", "print_tables", "draw_figures",
    "write_page", "log_tracking",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a job takes; None where nothing like it was recorded."""

    seconds: float | None
    memory_mib: float = 0.0
    disk_mib: float = 0.0


@dataclass(frozen=True)
class Job:
    """A job of the workflow: its rule, its dataset or run, the threads it computes with."""

    rule: str
    wildcard: str
    threads: int
    cost: Cost


def wants_gpu(device: str) -> bool:
    """Whether jobs ask for a GPU under ``device`` of the configuration: with auto, where this machine has one."""
    return device == "cuda" or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))


def print_plan(paths: list[Path], overrides: Mapping[str, Any], cores: int) -> None:
    """Print the jobs that are not done yet, by rule, and the sums.

    Raises:
        NemesisError: whatever is wrong with configuration and folders, or with the workflow.
    """
    experiment = plan(paths, overrides)
    console = Console()
    config = experiment.config
    console.print(f"[bold]{config.experiment}[/bold]: {len(experiment.pretraining)} patients for pretraining, "
                  f"{len(experiment.evaluation)} for evaluation, {len(experiment.runs)} runs")  # fmt: skip
    timings = _read_timings()
    jobs = [_job(experiment, rule, wildcard, timings) for rule, wildcard in _pending(paths, overrides, cores)]
    if not jobs:
        console.print("Nothing to be done.")
        return
    table = Table("rule", "jobs", "about, one after another", "peak memory of one", "disk")
    for rule in RULES:
        of_rule = [job for job in jobs if job.rule == rule]
        if of_rule:
            memory = max(job.cost.memory_mib for job in of_rule)
            disk = sum(job.cost.disk_mib for job in of_rule)
            table.add_row(rule, str(len(of_rule)), _clock([job.cost.seconds for job in of_rule]), _mib(memory), _mib(disk))
    console.print(table)
    console.print(sum_line(jobs, cores))
    unknown = sorted({f"{job.rule} {job.wildcard}".strip() for job in jobs if job.cost.seconds is None})
    if unknown:
        console.print(f"Not in these sums, as nothing like it was recorded ({len(unknown)}): {', '.join(unknown[:8])}"
                      + (" ..." if len(unknown) > 8 else ""))  # fmt: skip


def record(paths: list[Path], overrides: Mapping[str, Any]) -> None:
    """Add what the jobs of a finished experiment took to ``timings.json``."""
    experiment = plan(paths, overrides)
    timings = _read_timings()
    for dataset in experiment.datasets:
        measured = _benchmark(experiment, "ingest_scans", dataset.config.name)
        if measured and dataset.cases:
            stored = sum(file.stat().st_size for file in dataset.folder.rglob("*") if file.is_file())
            timings["ingest_scans"][_ingest_key(experiment, dataset)] = {
                "what": f"{dataset.config.name}, a case",
                "seconds": round(measured["s"] / len(dataset.cases), 4),
                "memory_mib": round(measured["max_rss"]),
                "disk_mib": round(stored / 2**20 / len(dataset.cases), 3),
            }
    for run in experiment.runs:
        what = f"{run.method} at {experiment.config.superpatch}³"
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
        measured = _benchmark(experiment, "evaluate_encoder", run.id)
        if measured:
            timings["evaluate_encoder"][_evaluate_key(experiment, run.identity)] = {
                "what": f"{what}, a patient",
                "seconds": round(measured["s"] / len(experiment.evaluation), 4),
                "memory_mib": round(measured["max_rss"]),
                "disk_mib": round(_size_mib(experiment.evaluation_folder(run.id)), 3),
            }
    for rule in RULES:
        measured = _benchmark(experiment, rule, "")
        if measured:
            timings["fixed"][rule] = {"seconds": round(measured["s"], 2), "memory_mib": round(measured["max_rss"])}
    write_text(TIMINGS, json.dumps(timings, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sum_line(jobs: list[Job], cores: int) -> str:
    """Time and disk of all jobs in a sentence, which says "at least" where some job was never recorded."""
    about = "At least" if any(job.cost.seconds is None for job in jobs) else "About"
    disk = _mib(sum(job.cost.disk_mib for job in jobs))
    return f"{about} {_duration(wall_seconds(jobs, cores))} on {cores} cores like those of the recording, {disk} of disk."


def wall_seconds(jobs: list[Job], cores: int) -> float:
    """How long the jobs take on so many cores: ingestion, then each run's training and evaluation as cores fall free, then the
    report, one after another."""
    alone = sum(job.cost.seconds or 0.0 for job in jobs if job.rule not in ("pretrain_method", "evaluate_encoder"))
    free: list[float] = [0.0] * cores
    ready: dict[str, float] = {}
    chained = [job for job in jobs if job.rule in ("pretrain_method", "evaluate_encoder")]
    for job in sorted(chained, key=lambda job: (RULES.index(job.rule), -(job.cost.seconds or 0.0))):
        taken = [heapq.heappop(free) for _ in range(min(job.threads, cores))]
        end = max([ready.get(job.wildcard, 0.0), *taken]) + (job.cost.seconds or 0.0)
        ready[job.wildcard] = end
        for _ in taken:
            heapq.heappush(free, end)
    return alone + max(free)


def _job(experiment: Experiment, rule: str, wildcard: str, timings: dict[str, Any]) -> Job:
    threads = 1
    entry: dict[str, Any] | None
    count = 1
    if rule == "ingest_scans":
        dataset = next(d for d in experiment.datasets if d.config.name == wildcard)
        entry, count = timings[rule].get(_ingest_key(experiment, dataset)), len(dataset.cases)
    elif rule == "pretrain_method":
        run = experiment.run(wildcard)
        entry, threads = timings[rule].get(_pretrain_key(run.identity)), run.threads
        if entry is not None:
            steps = run.identity["pretraining"]["steps"] if run.trains else 0
            seconds = entry["start_seconds"] + steps * entry["seconds"]
            return Job(rule, wildcard, threads, Cost(seconds, entry["memory_mib"], entry["disk_mib"]))
    elif rule == "evaluate_encoder":
        identity = experiment.run(wildcard).identity
        entry, threads = timings[rule].get(_evaluate_key(experiment, identity)), experiment.config.probe.threads
        if entry is not None:
            seconds = entry["seconds"] * len(experiment.evaluation)
            return Job(rule, wildcard, threads, Cost(seconds, entry["memory_mib"], entry["disk_mib"]))
    else:
        entry = timings["fixed"].get(rule)
    if entry is None:
        return Job(rule, wildcard, threads, Cost(None))
    return Job(rule, wildcard, threads, Cost(entry["seconds"] * count, entry["memory_mib"], entry.get("disk_mib", 0.0) * count))


def _ingest_key(experiment: Experiment, dataset: PlannedDataset) -> str:
    spacing = getattr(dataset.config, "base_spacing_mm", None)
    return digest([dataset.config.reader, dataset.config.name, spacing, experiment.config.preparation.spacing_mm])


def _pretrain_key(identity: Mapping[str, Any]) -> str:
    recipe = identity["pretraining"] or {}
    cost = {name: recipe.get(name) for name in ("batch_size", "compile", "precision", "threads")}
    return digest([identity["method"], identity["settings"], identity["superpatch"], cost])


def _evaluate_key(experiment: Experiment, identity: Mapping[str, Any]) -> str:
    """What a patient's evaluation costs depends on; seeds, thresholds, values of C and the bootstrap cost nothing here."""
    probe = experiment.config.probe
    cost = probe.model_dump(
        mode="json", include={"folds", "draws", "label_fractions", "protocols", "precision", "threads"}
    ) | {"regularisation": len(set(probe.regularisation))}  # fmt: skip
    pool = [case.dataset for case in experiment.evaluation]
    scans = [[_ingest_key(experiment, d), pool.count(d.config.name)] for d in experiment.datasets if d.config.name in pool]
    return digest([identity["method"], identity["settings"], identity["superpatch"], cost, scans])


def _pending(paths: list[Path], overrides: Mapping[str, Any], cores: int) -> list[tuple[str, str]]:
    """(rule, dataset or run) of every job that Snakemake would run."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", str(cores), "--configfile", *map(str, paths)]
    if overrides:
        command += ["--config", *(f"{name}={json.dumps(value)}" for name, value in overrides.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode:
        raise NemesisError(Fault("snakemake --dry-run", text.strip()[-2000:], "Run it in the folder that holds the Snakefile"))
    return parse_dry_run(text)


def parse_dry_run(text: str) -> list[tuple[str, str]]:
    """(rule, value of its wildcard or nothing) of every job in the output of a dry run."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", "\n" + text)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)
        wildcard = re.search(r"^ +wildcards: \w+=(\S+)", block, re.MULTILINE)
        if rule and rule.group(1) in RULES:
            jobs.append((rule.group(1), wildcard.group(1) if wildcard else ""))
    return jobs


def _benchmark(experiment: Experiment, rule: str, wildcard: str) -> dict[str, float] | None:
    path = experiment.folder / "benchmarks" / (f"{rule}/{wildcard}.tsv" if wildcard else f"{rule}.tsv")
    if not path.exists():
        return None
    row = next(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    return {name: float(row[name]) if row[name] not in ("-", "NA") else 0.0 for name in ("s", "max_rss")}


def _read_timings() -> dict[str, Any]:
    empty: dict[str, Any] = {"ingest_scans": {}, "pretrain_method": {}, "evaluate_encoder": {}, "fixed": {}}
    return {**empty, **json.loads(TIMINGS.read_text(encoding="utf-8"))} if TIMINGS.exists() else empty


def _size_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def _clock(seconds: list[float | None]) -> str:
    known = [s for s in seconds if s is not None]
    if not known:
        return "not recorded"
    return _duration(sum(known)) + (f" + {len(seconds) - len(known)} not recorded" if len(known) < len(seconds) else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mib(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 10240 else f"{mib / 1024:.1f} GiB"
