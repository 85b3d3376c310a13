"""The fine-tuning job of one run and arm: organ presence and segmentation, by one recipe and one search for all methods.

Of each (fold, label fraction, draw) the first inner fold of the training patients validates, the rest trains: every learning rate
of the recipe is tried, and the weights with the best look at the validation are taken, as they are. With fewer than five training
patients, or where the validation says nothing, all train at a fixed learning rate to the last step, and the cell is marked
"fixed". Test patients are looked at once, by the weights that were taken.

Arms: ``pretrained`` starts from the run's checkpoint; ``scratch`` from the random weights that pretraining started from;
``scratch_matched`` is that for so many steps more that it costs what pretraining and fine-tuning cost together.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from nemesis.config import Preparation
from nemesis.data.samples import Labelling
from nemesis.data.scans import Scans
from nemesis.data.superpatches import evaluation_superpatches
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.agreement import UNITS
from nemesis.evaluation.cost import counted
from nemesis.evaluation.downstream import cost_rows, matched_steps, pretraining_macs, segmenter_macs
from nemesis.evaluation.organs import LabelledScans, SegmentationTask
from nemesis.evaluation.presence import Presence, PresenceTask, Windows
from nemesis.evaluation.problems import (
    PREDICTIONS,
    Answer,
    Data,
    Problem,
    data_of,
    inner_folds,
    predictions_of,
    problems,
    rows_of,
    training_rows,
)
from nemesis.evaluation.rows import write_rows
from nemesis.evaluation.tuning import Tuned, Tuning
from nemesis.files import digest, write_parquet, write_text
from nemesis.finetuning import Arm, Finetuning, Task, protocol_of
from nemesis.method import Method, create
from nemesis.models.checkpoint import load_weights
from nemesis.training.device import Precision, device_for, peak_memory_mib, resolve_precision, set_threads

SEGMENTATIONS = pa.schema(
    [(name, pa.string()) for name in ("dataset", "protocol", "selection")]
    + [("label_fraction", pa.float64()), ("draw", pa.int16()), ("fold", pa.int16())]
    + [(name, pa.string()) for name in ("organ", "patient", "case", "metric")]
    + [("value", pa.float64())]
)
Record = dict[str, Any]


def finetune(spec: Mapping[str, Any], index: Path, view: Path, device: str = "auto") -> None:
    """Fine-tune one run's network in one arm; write rows, predictions, segmentations (a line per organ, scan and figure; a
    missed organ's distance is null) and timing.json.

    What was reached is saved in ``state`` beside them now and then, and a job that was killed goes on from there. The files are
    written when all is done, each atomically; on a CPU the same inputs and thread count give the same bytes (timing.json apart),
    interrupted or not.

    Args:
        spec: ``run`` (id), ``arm``; ``identity`` of the run; ``checkpoint`` (path; of the pretrained arm), ``pool`` (of
            evaluation; path); ``organs`` (names); ``label_numbers`` (dataset → organ → number); ``preparation`` and ``finetune``
            (sections of the configuration); ``folds``, ``split_seed`` and ``positive_voxels`` of the probe; ``out`` (folder).
        index: table of the checked scans.
        view: the same of the scans as a method sees them that has a voxel size of its own; of others it is not looked at.
        device: auto (a GPU where there is one), cpu or cuda.

    Raises:
        NemesisError: a checkpoint that does not fit, fewer than 3 patients with labels, or a training that diverges at every
            learning rate.
    """
    began, out = time.perf_counter(), Path(spec["out"])
    recipe = Finetuning.model_validate(spec["finetune"])
    set_threads(recipe.threads)
    with device_for(device) as place:
        job = _Job(spec, index, view, recipe, place, resolve_precision(recipe.precision, place))
        predictions, rows = job.presence() if "presence" in recipe.tasks else (PREDICTIONS.empty_table(), [])
        segmentations: list[Record] = []
        if "segmentation" in recipe.tasks and job.method.card.segments:
            segmentations, more = job.segmentation()
            rows += more
        name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
        timing = {"seconds": time.perf_counter() - began, "peak_memory_mib": peak_memory_mib(place), "device": name}
    write_parquet(out / "predictions.parquet", predictions)
    write_parquet(out / "segmentations.parquet", pa.Table.from_pylist(segmentations, schema=SEGMENTATIONS))
    dataset = "+".join(sorted({case.dataset for case in job.scans.cases}))
    write_rows(out / "rows.parquet", [{"run": spec["run"], "dataset": dataset} | row for row in rows])
    write_text(out / "timing.json", json.dumps(timing, indent=1) + "\n")
    shutil.rmtree(out / "state", ignore_errors=True)


@dataclass
class _Job:
    """What all problems of a job share."""

    spec: Mapping[str, Any]
    index: Path
    view_index: Path
    recipe: Finetuning
    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        spec, identity = self.spec, self.spec["identity"]
        self.method: Method[Any] = create(identity["method"], identity["settings"], identity["superpatch"])
        self.arm = cast(Arm, spec["arm"])
        preparation = Preparation.model_validate(spec["preparation"])
        self.scans = Scans(Path(spec["pool"]), self.index, preparation)
        self.view = Scans(Path(spec["pool"]), self.view_index, preparation) if identity.get("spacing_mm") else None
        self.table = evaluation_superpatches(
            self.scans, self.method.superpatch, spec["organs"], spec["label_numbers"], spec["positive_voxels"]
        )
        self.data: Data = data_of(self.table, spec["organs"])
        asked = problems(self.data, spec["folds"], spec["split_seed"], self.recipe.label_fractions, self.recipe.draws)
        held_out = self.recipe.folds_held_out or spec["folds"]
        self.problems = [problem for problem in asked if problem.fold < held_out]
        self.cost = counted(self.method)
        # what another device or arithmetic reached is nothing to go on from
        self.states = Path(spec["out"]) / "state" / digest([dict(spec), self.device.type, self.precision])
        for other in self.states.parent.glob("*"):
            if other != self.states:
                shutil.rmtree(other, ignore_errors=True)

    def presence(self) -> tuple[pa.Table, list[Record]]:
        """Predictions (:data:`PREDICTIONS`) and rows."""
        windows = Windows(self.scans, self.view, self.table, self.method.superpatch)
        seen = windows.mean_number(np.flatnonzero(~self.data.easy))
        of_step = self.cost.encode * self.recipe.batch_size * seen
        protocol, organs = protocol_of("presence", self.arm), self.spec["organs"]
        steps, tables = self._steps(of_step), []
        answers: dict[tuple[str, Problem], Answer] = {}
        rows: list[Record] = []
        for problem in self.problems:
            seed = _seed(self.spec, "presence", problem)

            def make(seed: int = seed) -> nn.Module:
                network = self._network()
                torch.manual_seed(seed)  # of the head
                return Presence(self.method, network, len(organs)).to(self.device)

            shared: dict[str, Any] = {"make": make, "windows": windows, "data": self.data, "batch": self.recipe.batch_size}
            shared |= {"seed": seed, "device": self.device, "precision": self.precision}
            task = PresenceTask.of(problem, self._validators(problem), **shared)
            selects = task.validates
            task = task if selects else PresenceTask.of(problem, frozenset(), **shared)
            _require_superpatches(task, problem)
            tuned = self._tuned(Tuning(task, self.recipe, steps, selects, seed, *self._where("presence", problem)))
            answers[protocol, problem] = task.answer(task.module(), tuned, problem, selects)
            tables.append(predictions_of(self.data, organs, problem, protocol, answers[protocol, problem]))
            rows += [row | {"protocol": protocol} for row in training_rows(self.data, problem)]
            rows += _chosen(problem, protocol, tuned, selects)
        predictions = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
        rows += rows_of(predictions, self.data, organs, answers)
        shown = self.recipe.batch_size * seen * self.method.superpatch**3
        return predictions, rows + self._costs(steps, of_step, shown, protocol)

    def segmentation(self) -> tuple[list[Record], list[Record]]:
        """A line per organ and scan (:data:`SEGMENTATIONS`), and rows."""
        organs, recipe, edge = self.spec["organs"], self.recipe, self.method.superpatch
        labelling = Labelling(self.scans, organs, self.spec["label_numbers"])
        scans = LabelledScans(self.scans, self.view, labelling, edge)
        of_step = segmenter_macs(self.method, len(organs)) * recipe.batch_size
        protocol, steps = protocol_of("segmentation", self.arm), self._steps(of_step)
        lines: list[Record] = []
        rows: list[Record] = []
        for problem in self.problems:
            seed, validators = _seed(self.spec, "segmentation", problem), self._validators(problem)

            def make(seed: int = seed) -> nn.Module:
                network = self._network()
                torch.manual_seed(seed)  # of new layers
                return self.method.segmenter(network, len(organs)).to(self.device)

            def task_of(validators: frozenset[str], make: Any = make, seed: int = seed, p: Problem = problem) -> SegmentationTask:
                train, validation = scans.of(p.train - validators), scans.of(validators)
                figures = (recipe.batch_size, recipe.centred, recipe.overlap, seed)
                return SegmentationTask(make, scans, train, validation, *figures, self.device, self.precision)

            task = task_of(validators)
            selects = task.validates
            task = task if selects else task_of(frozenset())
            tuned = self._tuned(Tuning(task, recipe, steps, selects, seed, *self._where("segmentation", problem)))
            network = task.module()
            network.load_state_dict(tuned.weights)
            network.eval()
            place = {"protocol": protocol, "label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
            place["selection"] = _selection(selects)
            for i in scans.of(problem.test):
                case = self.scans.cases[i]
                who = place | {"dataset": case.dataset, "patient": f"{case.dataset}/{case.patient}", "case": case.case}
                found = task.judged(network, i, recipe.surface_tolerance_mm)
                lines += [who | {"organ": organ, "metric": metric, "value": value} for organ, metric, value in found]
            rows += _chosen(problem, protocol, tuned, selects)
            rows.append(place | {"metric": "training_patients", "unit": "patients", "value": len(problem.train)})
        rows += _organ_rows(lines)
        return lines, rows + self._costs(steps, of_step, recipe.batch_size * edge**3, protocol)

    def _network(self) -> nn.Module:
        torch.manual_seed(self.spec["identity"]["seed"])
        network = self.method.build()
        if self.arm == "pretrained":
            load_weights(network, Path(self.spec["checkpoint"]))
        return network.to(self.device)

    def _validators(self, problem: Problem) -> frozenset[str]:
        held_out = inner_folds(problem.train, self.spec["split_seed"])
        return held_out[0] if held_out else frozenset()

    def _steps(self, of_step: float) -> int:
        if self.arm != "scratch_matched":
            return self.recipe.steps
        pretraining = pretraining_macs(self.spec["identity"], self.cost)
        assert pretraining is not None  # of published weights there is no such control
        return matched_steps(self.recipe.steps, pretraining, of_step)

    def _where(self, task: Task, problem: Problem) -> tuple[Path, torch.device, Precision]:
        name = f"{task}-f{problem.fraction:g}-d{problem.draw}-k{problem.fold}.pt"
        return self.states / name, self.device, self.precision

    def _tuned(self, tuning: Tuning[Any]) -> Tuned:
        tuned = tuning.run()
        assert tuned is not None  # it was not told to stop before
        return tuned

    def _costs(self, steps: int, of_step: float, shown: float, protocol: str) -> list[Record]:
        pretraining = pretraining_macs(self.spec["identity"], self.cost)
        return list(cost_rows(self.arm, steps, len(self.recipe.learning_rates), of_step, shown, pretraining, protocol))


def _require_superpatches(task: PresenceTask, problem: Problem) -> None:
    if not len(task.train):
        what = f"fold {problem.fold} at {100 * problem.fraction:g} % of the labels has no superpatch above the foreground floor"
        raise NemesisError(Fault("finetune", what, "Add labelled patients, or lower `preparation.foreground_floor`."))


def _chosen(problem: Problem, protocol: str, tuned: Tuned, selected: bool) -> Iterator[Record]:
    """What was taken, the learning rate and the step, and what every look at the inner validation said."""
    place = {"protocol": protocol, "label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold}
    place |= {"selection": _selection(selected)}
    yield place | {"metric": "learning_rate", "step": tuned.step, "value": tuned.learning_rate}
    for look in tuned.looks:
        at = {"metric": "validation", "step": look.step, "learning_rate": look.learning_rate}
        yield place | at | {"value": None if np.isnan(look.validation) else look.validation}


def _organ_rows(lines: list[Record]) -> Iterator[Record]:
    """Of each organ in each (fold, draw): every figure's mean over the scans that have it; in how many scans it is there and
    missed, so that it has no distance, and in how many it is seen though it is not there."""
    names = ("protocol", "selection", "label_fraction", "draw", "fold", "organ", "metric")
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    for key, group in groups.items():
        place, values = dict(zip(names, key, strict=True)), [line["value"] for line in group if line["value"] is not None]
        if place["metric"] == "invented":
            yield place | {"unit": "scans", "value": float(len(group))}
            continue
        if place["metric"] == "hd95":
            yield place | {"metric": "missed", "unit": "scans", "value": float(len(group) - len(values))}
        patients = len({line["patient"] for line in group if line["value"] is not None})
        mean = float(np.mean(values)) if values else None
        yield place | {"unit": UNITS[place["metric"]], "value": mean, "n_patients": patients}


def _selection(selected: bool) -> str:
    return "inner validation" if selected else "fixed"


def _seed(spec: Mapping[str, Any], task: Task, problem: Problem) -> int:
    """Of everything random in a problem's training; the same for every method and arm of a seed."""
    name = f"{spec['identity']['seed']}/{task}/{problem.fraction:g}/{problem.draw}/{problem.fold}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
