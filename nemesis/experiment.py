"""The plan of an experiment: what the workflow needs to know of it before anything runs.

Made from the configuration and a listing of the scans; no pixel is read and no network imported. Small files that say what the
jobs depend on (manifests, pools, the experiment itself) are written on the way, and only where their content changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nemesis.data
import nemesis.evaluation
import nemesis.report
from nemesis.config import MIN_EVALUATION_PATIENTS, Config, Dataset, merged, without_unknown_keys
from nemesis.data.cases import SCORED_KINDS, Case, check_organs, label_numbers, list_cases, write_manifest
from nemesis.data.pools import split, write_pool
from nemesis.errors import Fault, NemesisError
from nemesis.files import digest, write_text_if_changed
from nemesis.method import find
from nemesis.runs import Run, plan_runs

RESOURCES = ("device", "loader_workers", "state_every", "data_root")  # keys that no number depends on


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset, its cases in either pool, the folder of its stored volumes, and the small file that stands for the raw scans."""

    config: Dataset
    root: Path | None
    cases: list[Case]
    label_numbers: dict[str, int]
    folder: Path
    manifest: Path

    @property
    def verdicts(self) -> Path:
        """What ingestion says of every case."""
        return self.manifest.with_name(f"{self.config.name}.verdicts.json")


@dataclass(frozen=True)
class Experiment:
    """Everything that is known of an experiment before it runs."""

    config: Config
    results: Path
    datasets: list[PlannedDataset]
    pretraining: list[Case]
    evaluation: list[Case]
    pretraining_pool: Path
    evaluation_pool: Path
    runs: list[Run]

    @property
    def folder(self) -> Path:
        """Where this experiment's own results lie."""
        return self.results / self.config.experiment

    @property
    def index(self) -> Path:
        """Table of the checked cases."""
        return self.folder / "data" / "index.parquet"

    def run(self, run_id: str) -> Run:
        """The run of that id."""
        return next(run for run in self.runs if run.id == run_id)

    def run_folder(self, run_id: str) -> Path:
        """Where a run's checkpoint lies; shared by all experiments."""
        return self.results / "runs" / run_id

    def evaluation_folder(self, run_id: str) -> Path:
        """Where a run's rows and predictions in this experiment lie."""
        return self.folder / "evaluation" / run_id

    def evaluate_spec(self, run_id: str) -> dict[str, Any]:
        """What `nemesis evaluate` needs to know of a run, and nothing else."""
        run, config = self.run(run_id), self.config
        reconstructs = find(run.method).card.reconstructs
        return {
            "run": run.id,
            "identity": run.identity,
            "checkpoint": str(self.run_folder(run_id) / "checkpoint.safetensors"),
            "pool": str(self.evaluation_pool),
            "index": str(self.index),
            "organs": config.organs,
            "label_numbers": {dataset.config.name: dataset.label_numbers for dataset in self.datasets},
            "preparation": config.preparation.model_dump(mode="json"),
            "probe": config.probe.model_dump(mode="json", exclude={"bootstrap"}),
            **({"reconstruction": config.reconstruction.model_dump(mode="json")} if reconstructs else {}),
            "out": str(self.evaluation_folder(run_id)),
            "features": str(self.run_folder(run_id) / "features"),
            "version": nemesis.evaluation.VERSION,
        }

    def ingest_spec(self, dataset: PlannedDataset) -> dict[str, Any]:
        """What `nemesis ingest` needs to know of a dataset."""
        return {
            "manifest": str(dataset.manifest),
            "root": None if dataset.root is None else str(dataset.root),
            "volumes": str(dataset.folder),
            "verdicts": str(dataset.verdicts),
            "preparation": self.config.preparation.model_dump(mode="json"),
            "superpatch": self.config.superpatch,
            "version": nemesis.data.VERSION,
        }

    def report_spec(self) -> dict[str, Any]:
        """What the jobs of the report need to know; no key that numbers do not depend on."""
        shown = self.config.model_dump(mode="json", exclude=set(RESOURCES))
        for dataset in shown["datasets"]:
            dataset.pop("root", None)
        return {
            "experiment": self.config.experiment,
            "config": shown,
            "config_hash": digest(shown),
            "versions": {
                stage.__name__.removeprefix("nemesis."): stage.VERSION
                for stage in (nemesis.data, nemesis.models, nemesis.training, nemesis.evaluation, nemesis.report)
            },
            "datasets": sorted({case.dataset for case in self.evaluation}),
            "transductive": len(
                {(c.dataset, c.patient) for c in self.pretraining} & {(c.dataset, c.patient) for c in self.evaluation}
            ),
            "bootstrap": self.config.probe.bootstrap,
            "seed": self.config.probe.split_seed,
            "runs": [
                {
                    "run": run.id,
                    "label": run.label,
                    "method": run.method,
                    "seed": run.seed,
                    "evaluation": str(self.evaluation_folder(run.id)),
                    "folder": str(self.run_folder(run.id)),
                }
                for run in self.runs
            ],
        }

    @cached_property
    def report_file(self) -> Path:
        """:meth:`report_spec` as a file, named by its content: a plan of something else leaves a running workflow's alone."""
        return self.folder / f"experiment-{digest(self.report_spec())}.json"


def plan(paths: list[Path], overrides: Mapping[str, Any] | None = None, results: Path = Path("results")) -> Experiment:
    """Read the configuration, list the scans, split the patients, name the runs.

    Raises:
        NemesisError: with every fault of configuration, folders, pools and methods that can be told without reading a scan.
    """
    raw = merged(paths, overrides)
    config, faults = without_unknown_keys(raw, ", ".join(str(path) for path in paths))
    if config is None:
        raise NemesisError(faults)
    datasets = []
    for dataset in config.datasets:
        try:
            datasets.append(_plan_dataset(config, dataset, results))
        except NemesisError as error:
            faults += error.faults
    known = {dataset.name for dataset in config.datasets}
    for name in config.exclude:
        if name.partition("/")[0] not in known or "/" not in name:
            faults.append(Fault("exclude", f"'{name}' names no dataset", "Write dataset/case."))
    pretraining: list[Case] = []
    evaluation: list[Case] = []
    if len(datasets) == len(config.datasets):
        numbers = {d.config.name: d.label_numbers for d in datasets}
        organs = set(config.organs)
        try:
            check_organs(config.organs, numbers)
        except NemesisError as error:
            faults += error.faults
            organs = {organ for of_dataset in numbers.values() for organ in of_dataset}  # a misspelt one may be any
        try:
            pretraining, evaluation = split([case for d in datasets for case in d.cases], config.pools)
        except NemesisError as error:
            faults += error.faults
        else:
            faults += _evaluation_faults(config, evaluation, organs, numbers)
    pool_digest = _digest_of(pretraining)
    try:
        runs = plan_runs(config, pool_digest)
    except NemesisError as error:
        faults += error.faults
    if faults:
        raise NemesisError(faults)
    evaluation_digest = digest([[c.dataset, c.case, c.fingerprint, c.label_fingerprint] for c in evaluation])
    used = {case.name for case in (*pretraining, *evaluation)}
    datasets = [replace(d, cases=[case for case in d.cases if case.name in used]) for d in datasets]
    pools = results / "pools"
    experiment = Experiment(
        config, results, datasets, pretraining, evaluation,
        pools / f"{pool_digest}.json", pools / f"{evaluation_digest}.json", runs,
    )  # fmt: skip
    for planned in datasets:
        write_manifest(planned.manifest, planned.config, planned.cases, planned.label_numbers)
    write_pool(experiment.pretraining_pool, pretraining, labels=False)
    write_pool(experiment.evaluation_pool, evaluation, labels=True)
    write_text_if_changed(experiment.report_file, json.dumps(experiment.report_spec(), indent=1, ensure_ascii=False) + "\n")
    return experiment


def _evaluation_faults(
    config: Config, evaluation: list[Case], organs: Collection[str], numbers: Mapping[str, Collection[str]]
) -> list[Fault]:
    """What does not fit the evaluation pool: its patients with labels of these organs, the folds, the stitched cases."""
    faults = []
    patients = len({(c.dataset, c.patient) for c in evaluation if _may_show(c, organs, numbers[c.dataset])})
    if patients < MIN_EVALUATION_PATIENTS:
        what = f"{patients} evaluation patients with labels of the probed organs are too few to fit on some and test on others"
        faults.append(Fault("pools.evaluation", what, f"Name at least {MIN_EVALUATION_PATIENTS}, or probe other `organs`."))
    elif patients < config.probe.folds:
        what = f"{config.probe.folds} folds are more than the {patients} evaluation patients with labels of the probed organs"
        faults.append(Fault("probe.folds", what, f"Set it to at most {patients}."))
    try:
        config.reconstruction.volumes([case.name for case in evaluation])
    except NemesisError as error:
        faults += error.faults
    return faults


def _may_show(case: Case, organs: Collection[str], of_dataset: Collection[str]) -> bool:
    """An organ was drawn in the case, or only ingestion can tell which were: a partial map of a plain folder."""
    if case.kind not in SCORED_KINDS:
        return False
    if case.annotated is None and case.kind == "partial":
        return True
    return not set(organs).isdisjoint(of_dataset if case.annotated is None else case.annotated)


def _plan_dataset(config: Config, dataset: Dataset, results: Path) -> PlannedDataset:
    root = getattr(dataset, "root", None) or config.data_root
    path = Path(root) if root is not None else None
    cases = list_cases(dataset, path, config.exclude)
    numbers = label_numbers(dataset, path)
    identity = [
        dataset.model_dump(mode="json", include={"name", "reader"}), config.preparation.model_dump(mode="json"),
        config.superpatch, numbers, nemesis.data.VERSION,
    ]  # fmt: skip
    manifest = results / config.experiment / "data" / f"{dataset.name}.manifest.json"
    return PlannedDataset(dataset, path, cases, numbers, results / "data" / f"{dataset.name}-{digest(identity)}", manifest)


def _digest_of(cases: list[Case]) -> str:
    return digest([[case.dataset, case.case, case.fingerprint] for case in cases])
