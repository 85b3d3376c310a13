"""The plan of an experiment: what the workflow needs to know of it before anything runs.

Made from the configuration and a listing of the scans; no pixel is read and no network imported. Small files that say what the
jobs depend on (manifests, pools, the experiment itself) are written on the way, and only where their content changed. Where a
dry run has stand-ins for scans that are not there yet, they are written outside the results and vanish with the process.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

import nemesis.data
import nemesis.evaluation
import nemesis.finetuning
import nemesis.report
import nemesis.sweep
from nemesis.config import (
    MIN_EVALUATION_PATIENTS,
    MIN_PATIENTS_FOR_SELECTION,
    Config,
    Probe,
    merged,
    without_unknown_keys,
)
from nemesis.data.cards import resolve
from nemesis.data.cases import SCORED_KINDS, UNTOLD, Case, check_organs, write_manifest
from nemesis.data.listings import expected_numbers, label_numbers, list_cases, stand_ins
from nemesis.data.pools import split, write_pool
from nemesis.data.seen import Seen
from nemesis.data.views import Spacing, view_name
from nemesis.datasets import CardDataset, Dataset, Entry, FolderDataset, PhantomCohort
from nemesis.errors import Fault, NemesisError, did_you_mean
from nemesis.evaluation.backbones import find_weights
from nemesis.files import digest, file_sha256, write_text, write_text_if_changed
from nemesis.finetuning import Arm
from nemesis.method import Method, find
from nemesis.runs import Material, Run, is_searched, plan_runs, search_template

# keys that no number depends on
RESOURCES = ("device", "ingest_shard", "loader_workers", "quality_every", "state_every", "data_root")


STAGES = (nemesis.data, nemesis.models, nemesis.training, nemesis.evaluation, nemesis.finetuning, nemesis.report)


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset, its cases in either pool, and the folder of its stored volumes."""

    config: Dataset
    root: Path | None
    cases: list[Case]
    label_numbers: dict[str, int]
    folder: Path
    absent: bool = False  # its cases are stand-ins


@dataclass(frozen=True)
class Shard:
    """The cases of a dataset that one job ingests, the small file that stands for their raw scans, and the job's verdicts."""

    name: str  # <dataset>/<number>
    dataset: PlannedDataset
    cases: list[Case]
    manifest: Path
    verdicts: Path

    def view_verdicts(self, spacing: Spacing) -> Path:
        """What is said of the cases' views at a voxel size."""
        return self.verdicts.with_name(self.verdicts.name.replace(".", f"{view_name(spacing)}.", 1))


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
    material: Material
    runs: list[Run]
    inputs: Path | None = None  # where the files lie that planning writes; None: among the results
    lpips: tuple[Path, str] | None = None  # file and sha256 of the weights that LPIPS takes; None: it is not measured

    @property
    def folder(self) -> Path:
        """Where this experiment's own results lie."""
        return self.results / self.config.experiment

    @property
    def index(self) -> Path:
        """Table of the checked cases."""
        return self.folder / "data" / "index.parquet"

    def pool_of(self, run: Run) -> Path:
        """The pool that a run is trained on; of one that is not trained, the pretraining pool."""
        return self.pretraining_pool.with_name(f"{run.pool or self.material.pool}.json")

    def view_index(self, spacing: Spacing) -> Path:
        """The same table for the scans' views at a voxel size (D, H, W) in mm."""
        return self.index.with_name(f"index{view_name(spacing)}.parquet")

    def index_of(self, run: Run) -> Path:
        """The table of the scans that a run learns from."""
        return self.index if run.spacing is None else self.view_index(run.spacing)

    @property
    def views(self) -> list[Spacing]:
        """Voxel sizes at which some method wants to see the scans."""
        return list(dict.fromkeys(run.spacing for run in self._asking if run.spacing is not None))

    @property
    def _asking(self) -> list[Run]:
        """The runs, and the one that an adaptive sweep varies."""
        return [*self.runs, *([search_template(self.config, self.material)] if self.config.search else [])]

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """The jobs of ingestion, by name. A case stays in its shard as long as the number of shards does: one more case
        changes one manifest."""
        found = {}
        for dataset in self.datasets:
            count = math.ceil(len(dataset.cases) / self.config.ingest_shard)
            members: dict[int, list[Case]] = defaultdict(list)
            for case in dataset.cases:
                members[int(hashlib.sha256(case.case.encode()).hexdigest()[:12], 16) % count].append(case)
            for number, cases in sorted(members.items()):
                name = f"{dataset.config.name}/{number}"
                place = Path(self.config.experiment, "data", f"{name}.json")
                manifest = (self.inputs or self.results) / place.with_suffix(".manifest.json")
                verdicts = self.results / place.with_suffix(".verdicts.json")
                found[name] = Shard(name, dataset, cases, manifest, verdicts)
        return found

    def run(self, run_id: str) -> Run:
        """The run of that id; where several parts ask for it, the first."""
        return next(run for run in self.runs if run.id == run_id)

    @property
    def run_ids(self) -> list[str]:
        """Every network once, whichever parts ask for it."""
        return list(dict.fromkeys(run.id for run in self.runs))

    def run_folder(self, run_id: str) -> Path:
        """Where a run's checkpoint lies; shared by all experiments."""
        return self.results / "runs" / run_id

    def evaluation_folder(self, run_id: str) -> Path:
        """Where a run's rows and predictions in this experiment lie."""
        return self.folder / "evaluation" / run_id

    def evaluate_spec(self, run_id: str) -> dict[str, Any]:
        """What `nemesis evaluate` needs to know of a run, and nothing else."""
        run = self.run(run_id)
        return {
            **self._judging(run),
            "run": run.id,
            "identity": run.identity,
            "checkpoint": str(self.run_folder(run_id) / "checkpoint.safetensors"),
            "out": str(self.evaluation_folder(run_id)),
            "features": str(self.run_folder(run_id) / "features"),
        }

    @cached_property
    def tunings(self) -> dict[str, tuple[Run, Arm]]:
        """The jobs of fine-tuning, by name (<run>/<arm>-<digest>): first seeds of the methods, and controls of what was trained.

        The digest is of all that a job's figures depend on: experiments that ask for the same share it, as they share runs.
        What published weights cost nobody says: their network is trained from scratch, but not at matched compute.
        """
        recipe = self.config.finetune
        if recipe is None:
            return {}
        found: dict[str, tuple[Run, Arm]] = {}
        seeds: Counter[str] = Counter()
        for run in self.runs:
            if run.part != "methods" or (recipe.seeds is not None and seeds[run.label] == recipe.seeds):
                continue
            seeds[run.label] += 1
            controls = [c for c in recipe.controls if run.trains or (run.weights is not None and c == "scratch")]
            arms: list[Arm] = ["pretrained", *controls]
            found |= {f"{run.id}/{arm}-{digest(self._tuning(run, arm))}": (run, arm) for arm in arms}
        return found

    def finetune_folder(self, tuning: str) -> Path:
        """Where the rows and predictions of a job of fine-tuning lie; shared by all experiments."""
        return self.results / "finetuned" / tuning

    def finetune_spec(self, tuning: str) -> dict[str, Any]:
        """What `nemesis finetune` needs to know of a run and arm, beside the experiment's own tables of the scans."""
        run, arm = self.tunings[tuning]
        return {
            **self._tuning(run, arm),
            **({"checkpoint": str(self.run_folder(run.id) / "checkpoint.safetensors")} if arm == "pretrained" else {}),
            "pool": str(self.evaluation_pool),
            "out": str(self.finetune_folder(tuning)),
        }

    def _tuning(self, run: Run, arm: Arm) -> dict[str, Any]:
        """All that the figures of a job of fine-tuning depend on."""
        recipe, probe = self.config.finetune, self.config.probe
        assert recipe is not None
        return {
            "run": run.id,
            "arm": arm,
            "identity": run.identity,
            "pool": self.evaluation_pool.stem,  # a digest of the scans and their label maps
            "organs": self.config.organs,
            "label_numbers": {dataset.config.name: dataset.label_numbers for dataset in self.datasets},
            "preparation": self.config.preparation.model_dump(mode="json"),
            "finetune": recipe.model_dump(mode="json", exclude={"seeds", "controls"}),
            "folds": probe.folds,
            "split_seed": probe.split_seed,
            "positive_voxels": probe.positive_voxels,
            "data_version": nemesis.data.VERSION,  # a network that is not trained does not have it in its identity
            "version": nemesis.finetuning.VERSION,
        }

    def _judging(self, run: Run) -> dict[str, Any]:
        """How a run is judged, whatever its identity and its folders."""
        config, reconstructs = self.config, find(run.method).card.reconstructs and run.spacing is None
        return {
            "pool": str(self.evaluation_pool),
            "index": str(self.index),
            **({"view": str(self.view_index(run.spacing))} if run.spacing else {}),
            "organs": config.organs,
            "label_numbers": {dataset.config.name: dataset.label_numbers for dataset in self.datasets},
            "preparation": config.preparation.model_dump(mode="json"),
            "probe": self._probing(run).model_dump(mode="json", exclude={"bootstrap"}),
            **(self._reconstructing(run) if reconstructs else {}),
            **({"pretext": True} if run.trains and run.part == "methods" else {}),
            "version": nemesis.evaluation.VERSION,
        }

    def _probing(self, run: Run) -> Probe:
        """Cells and variants are compared at all labels; fewer labels and neighbours are for the methods.

        A superpatch of another size is positive from the same share of its voxels.
        """
        probe = self.config.probe
        if run.part == "methods":
            return probe
        scale = (run.identity["superpatch"] / self.config.superpatch) ** 3
        return at_all_labels(probe.model_copy(update={"positive_voxels": int(probe.positive_voxels * scale)}))

    def _reconstructing(self, run: Run) -> dict[str, Any]:
        """Cells and variants are compared under their masks, per superpatch; the whole input and volumes are for the methods.

        LPIPS is named by the weights that were found, wherever the configuration says they lie.
        """
        settings = self.config.reconstruction
        if run.part != "methods":
            named = [] if settings.stitched == "all" else settings.stitched[:1]
            settings = settings.model_copy(update={"unmasked": False, "stitched": named})
        found = {"reconstruction": settings.model_dump(mode="json", exclude={"lpips"})}
        if self.lpips is not None:
            path, sha256 = self.lpips
            found["lpips"] = {"network": settings.lpips.network, "weights": str(path), "sha256": sha256}
        return found

    def search_spec(self) -> dict[str, Any]:
        """What `nemesis sweep search` needs to know: the points, the run that they vary, and how its encoders are judged."""
        sweep = self.config.sweep
        assert sweep is not None and sweep.search is not None
        template = search_template(self.config, self.material)
        return {
            "embed_dims": sweep.embed_dims,
            "mask_ratios": [min(sweep.mask_ratios), max(sweep.mask_ratios)],
            "search": sweep.search.model_dump(mode="json", exclude={"workers"}),
            "template": template.identity,
            "evaluate": self._judging(template),
            "pool": str(self.pretraining_pool),
            "index": str(self.search_index),
            "runs": str(self.results / "runs"),
            "out": str(self.search_folder),
            "log": str(self.search_log),
            "version": nemesis.sweep.VERSION,
        }

    @property
    def search_index(self) -> Path:
        """The table of the scans that an adaptive sweep learns from."""
        return self.index_of(search_template(self.config, self.material))

    @property
    def search_threads(self) -> int:
        """CPU threads of all workers of an adaptive sweep."""
        assert self.config.search is not None
        return self.config.search.workers * search_template(self.config, self.material).threads

    def search_processes(self, threads: int) -> int:
        """How many workers of an adaptive sweep so many CPU threads carry: all of them, if there are enough."""
        return max(1, threads // search_template(self.config, self.material).threads)

    @property
    def searched_runs(self) -> list[str]:
        """Of the runs that the workflow trains those that an adaptive sweep may come upon, too."""
        if self.config.sweep is None or self.config.search is None:
            return []
        template = search_template(self.config, self.material).identity
        return list(dict.fromkeys(run.id for run in self.runs if is_searched(template, self.config.sweep, run)))

    @property
    def search_log(self) -> Path:
        """What the workers of an adaptive sweep say."""
        return self.folder / "logs" / "search_sweep.log"

    @property
    def search_folder(self) -> Path:
        """Where a grid's study lies, or an adaptive sweep leaves its trials and its best run."""
        return self.folder / "sweep"

    def ingest_spec(self, shard: Shard, spacing: Spacing | None = None) -> dict[str, Any]:
        """What `nemesis data ingest` needs to know of a shard, or of its views at a voxel size."""
        dataset, config = shard.dataset, self.config
        edges = [run.identity["superpatch"] for run in self._asking if run.spacing == spacing] if spacing else []
        return {
            "manifest": str(shard.manifest),
            "root": None if dataset.root is None else str(dataset.root),
            "volumes": str(dataset.folder),
            "verdicts": str(shard.view_verdicts(spacing) if spacing else shard.verdicts),
            "preparation": config.preparation.model_dump(mode="json"),
            "superpatch": config.superpatch,
            "largest_superpatch": max(edges) if edges else config.largest_superpatch,
            "view": spacing,
            "version": nemesis.data.VERSION,
        }

    @property
    def audit(self) -> Path:
        """What the pools share."""
        return self.folder / "data" / "audit.json"

    @property
    def shared_patients(self) -> int:
        """Evaluation patients that are pretrained on, too."""
        pretraining, evaluation = ({(c.dataset, c.patient) for c in pool} for pool in (self.pretraining, self.evaluation))
        return len(pretraining & evaluation)

    def audit_spec(self) -> dict[str, Any]:
        """What `nemesis data audit` needs to know."""
        wanted = self.config.pools.transductive
        return {
            "index": str(self.index),
            "pretraining": str(self.pretraining_pool),
            "evaluation": str(self.evaluation_pool),
            "transductive": wanted is True or (wanted == "if_needed" and self.shared_patients > 0),
            "accept": sorted(self.config.accept),
            "out": str(self.audit),
            "version": nemesis.data.VERSION,
        }

    def quality_spec(self) -> dict[str, Any]:
        """What `nemesis data quality` needs to know."""
        return {
            "experiment": self.config.experiment,
            "hu_window": list(self.config.preparation.hu_window),
            "every": self.config.quality_every,
            "accept": sorted(self.config.accept),
            "version": nemesis.report.VERSION,
        }

    def report_spec(self) -> dict[str, Any]:
        """What the jobs of the report need to know; no key that numbers do not depend on."""
        shown = self.config.model_dump(mode="json", exclude=set(RESOURCES))
        for dataset in shown["datasets"]:
            for name in UNTOLD:
                dataset.pop(name, None)
        shown["reconstruction"]["lpips"].pop("weights")  # what they are is told beside it, by their hash
        if self.config.search:
            shown["sweep"]["search"].pop("workers")
        return {
            "experiment": self.config.experiment,
            "config": shown,
            "config_hash": digest(shown),
            "versions": {stage.__name__.removeprefix("nemesis."): stage.VERSION for stage in STAGES},
            "datasets": sorted({case.dataset for case in self.evaluation}),
            "data": self._data(),
            "pools": {"pretraining": str(self.pretraining_pool), "evaluation": str(self.evaluation_pool)},
            "audit": str(self.audit),
            "transductive": self.shared_patients,
            "lpips": {"network": self.config.reconstruction.lpips.network, "sha256": self.lpips[1] if self.lpips else None},
            "bootstrap": self.config.probe.bootstrap,
            "seed": self.config.probe.split_seed,
            "runs": [
                {
                    "run": run.id,
                    "part": run.part,
                    "label": run.label,
                    **run.place,
                    "method": run.method,
                    "seed": run.seed,
                    "trained_on": _trained_on(run),
                    "learns_labels": run.trains and find(run.method).card.uses_labels,
                    "evaluation": str(self.evaluation_folder(run.id)),
                    "finetune": self._tuned(run),
                    "folder": str(self.run_folder(run.id)),
                }
                for run in self.runs
            ],
            **({"search": str(self.search_folder)} if self.config.search else {}),
        }

    def _tuned(self, run: Run) -> dict[str, str]:
        """Arm → folder of what is fine-tuned of a run, for the part that asks for it."""
        of_run = {arm: name for name, (other, arm) in self.tunings.items() if run.part == "methods" and other.id == run.id}
        return {arm: str(self.finetune_folder(name)) for arm, name in of_run.items()}

    def _data(self) -> list[dict[str, Any]]:
        """Patients, scans and kinds of labels of every dataset in either pool."""
        found = []
        for dataset in self.datasets:
            for pool, cases in (("pretraining", self.pretraining), ("evaluation", self.evaluation)):
                own = [case for case in cases if case.dataset == dataset.config.name]
                if own:
                    sizes = {"patients": len({case.patient for case in own}), "scans": len(own)}
                    kinds = dict(sorted(Counter(case.kind for case in own).items()))
                    found.append({"dataset": dataset.config.name, "pool": pool, **sizes, "kinds": kinds})
        return found

    @cached_property
    def report_file(self) -> Path:
        """:meth:`report_spec` as a file, named by its content: a plan of something else leaves a running workflow's alone."""
        return (self.inputs or self.results) / self.config.experiment / f"experiment-{digest(self.report_spec())}.json"


def _trained_on(run: Run) -> tuple[str, ...] | None:
    """Data sets whose scans a run's published weights saw; of a file under another name nobody says it."""
    if run.weights is None:
        return None
    return next((one.trained_on for one in find(run.method).card.published if one.file == run.weights.name), ())


def at_all_labels(probe: Probe) -> Probe:
    """The linear probe at the largest share of labels alone."""
    return probe.model_copy(update={"label_fractions": [max(probe.label_fractions)], "protocols": ["linear"]})


def plan(
    paths: list[Path],
    overrides: Mapping[str, Any] | None = None,
    results: Path = Path("results"),
    dry_run: bool = False,
) -> Experiment:
    """Read the configuration, list the scans, split the patients, name the runs.

    Args:
        dry_run: nothing will be computed, so a dataset that says how many scans are ``expected`` need not be there.

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
            datasets.append(_plan_dataset(config, dataset, results, dry_run))
        except NemesisError as error:
            faults += error.faults
    known = {dataset.name for dataset in config.datasets}
    for name in config.exclude:
        if name.partition("/")[0] not in known or "/" not in name:
            faults.append(Fault("exclude", f"'{name}' names no dataset", "Write dataset/case."))
    faults += _accept_faults(config.accept, datasets, known)
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
    labelled = [case for case in pretraining if case.kind != "none"]
    material = Material(
        _digest_of(pretraining),
        _digest_with_labels(labelled) if labelled else None,
        {d.config.name: d.label_numbers for d in datasets if d.config.name in {case.dataset for case in labelled}},
        partial(_sha256, results / "data"),
        partial(_macs, results / "data"),
    )
    lpips = None
    try:
        lpips = find_weights(config.reconstruction.lpips, material.sha256)
    except NemesisError as error:
        faults += error.faults
    try:
        runs = plan_runs(config, material)
    except NemesisError as error:
        faults += error.faults
    if faults:
        raise NemesisError(faults)
    evaluation_digest = _digest_with_labels(evaluation)
    used = {case.name for case in (*pretraining, *evaluation)}
    datasets = [replace(d, cases=[case for case in d.cases if case.name in used]) for d in datasets]
    inputs = results
    if absent := [d for d in datasets if d.absent]:
        _say_absent(absent)
        inputs = _passing_folder()
    pools = inputs / "pools"
    experiment = Experiment(
        config, results, datasets, pretraining, evaluation,
        pools / f"{material.pool}.json", pools / f"{evaluation_digest}.json", material, runs, inputs, lpips,
    )  # fmt: skip
    for shard in experiment.shards.values():
        write_manifest(shard.manifest, shard.dataset.config, shard.cases, shard.dataset.label_numbers)
    write_pool(experiment.pretraining_pool, pretraining, labels=False)
    write_pool(experiment.evaluation_pool, evaluation, labels=True)
    if any(run.pool == material.labelled for run in runs if run.trains):
        write_pool(pools / f"{material.labelled}.json", labelled, labels=True)
    write_text_if_changed(experiment.report_file, json.dumps(experiment.report_spec(), indent=1, ensure_ascii=False) + "\n")
    return experiment


def _accept_faults(accept: Collection[str], datasets: Collection[PlannedDataset], known: Collection[str]) -> list[Fault]:
    """Names in ``accept`` of no case; of datasets that are not there, or are faulty themselves, nothing is said."""
    cases = {case.name for dataset in datasets for case in dataset.cases}
    told = {dataset.config.name for dataset in datasets if not dataset.absent}
    faults = []
    for name in accept:
        dataset = name.partition("/")[0]
        if dataset not in known or (dataset in told and name not in cases):
            remedy = did_you_mean(name, cases, "Write dataset/case, or take it off the list.")
            faults.append(Fault("accept", f"there is no case '{name}'", remedy))
    return faults


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
    training = patients - math.ceil(patients / config.probe.folds)
    if config.search and training < MIN_PATIENTS_FOR_SELECTION:
        what = f"trials are judged by inner validation, which takes {MIN_PATIENTS_FOR_SELECTION} training patients in each fold"
        remedy = f"There are {training}: name more evaluation patients, set more `probe.folds`, or leave `search` out."
        faults.append(Fault("sweep.search", what, remedy))
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


def _plan_dataset(config: Config, entry: Entry, results: Path, dry_run: bool) -> PlannedDataset:
    path = _root(config, entry)
    dataset: Dataset = resolve(entry, path)[0] if isinstance(entry, CardDataset) else entry
    absent = False
    if dry_run and _is_absent(dataset, path):
        absent = True
        cases = stand_ins(dataset, _named(config, dataset.name), config.exclude)
        numbers = expected_numbers(dataset, config.organs)
    else:
        cases, numbers = list_cases(dataset, path, config.exclude, results / "data"), label_numbers(dataset, path)
    identity = [
        dataset.model_dump(mode="json", include={"name", "reader"}), config.preparation.spacing_mm, numbers, nemesis.data.VERSION
    ]  # fmt: skip
    store = results / "data" / f"{dataset.name}-{digest(identity)}"
    return PlannedDataset(dataset, path, cases, numbers, store, absent)


def _is_absent(dataset: Dataset, path: Path | None) -> TypeGuard[FolderDataset]:
    """How many scans it holds is said, but its folder is not there."""
    expected = None if isinstance(dataset, PhantomCohort) else dataset.expected
    return expected is not None and not (path and path.exists())


def _root(config: Config, dataset: Entry) -> Path | None:
    """The folder of a dataset's scans; None where nothing says it."""
    told = [part for part in (config.data_root, getattr(dataset, "root", None)) if part is not None]
    return Path(*told) if told else None


def _named(config: Config, dataset: str) -> list[str]:
    """The cases of a dataset that the configuration names, as dataset/case."""
    stitched = config.reconstruction.stitched
    lists = (config.pools.evaluation, config.pools.pretraining, [] if stitched == "all" else stitched)
    names = [name for names in lists if isinstance(names, list) for name in names]
    alone = len(config.datasets) == 1  # then a name may stand without its dataset
    return [name.removeprefix(f"{dataset}/") for name in names if name.startswith(f"{dataset}/") or (alone and "/" not in name)]


def _say_absent(absent: list[PlannedDataset]) -> None:
    listing = "".join(
        f"\n  - {d.root or '(neither root nor data_root)'} (datasets.{d.config.name}): {len(d.cases)} stand-ins" for d in absent
    )
    print(
        f"NOT REAL SCANS: this is planned without the scans of folders that are not there:{listing}\n"
        "Before a run that computes, put the scans there, or correct `root` or `data_root`.",
        file=sys.stderr,
    )


def _passing_folder() -> Path:
    """A folder that vanishes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="nemesis-plan-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _digest_of(cases: list[Case]) -> str:
    return digest([[case.dataset, case.case, case.fingerprint] for case in cases])


def _digest_with_labels(cases: list[Case]) -> str:
    return digest([[case.dataset, case.case, case.fingerprint, case.label_fingerprint] for case in cases])


def _sha256(memory: Path, path: Path) -> str:
    """Of a file that was hashed before and did not change, from memory: weights are large, and every job plans."""
    with Seen(memory / "seen.db") as seen:
        return str(seen.of(path, "sha256", file_sha256))


def _macs(memory: Path, method: Method[Any]) -> int:
    """Multiply–accumulates of a method's pretext, forward, per sample; remembered, for counting takes torch and seconds."""
    key = digest(
        [
            method.card.name,
            method.card.version,
            method.settings.model_dump(mode="json"),
            method.superpatch,
            nemesis.models.VERSION,
        ]
    )
    path = memory / "costs" / f"{key}.json"
    if not path.is_file():
        from nemesis.evaluation.cost import counted

        write_text(path, json.dumps(counted(method).pretext))
    return int(json.loads(path.read_text(encoding="utf-8")))
