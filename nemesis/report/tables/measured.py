"""What the tables are made of, read from what :mod:`nemesis.report.collect` gathered."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nemesis.evaluation.cells import EasyNegatives, Metric
from nemesis.evaluation.cost import FLOP_PER_MAC, PASSES_PER_STEP
from nemesis.evaluation.statistics import (
    Estimate,
    Scores,
    mean_over_organs,
    mean_over_superpatches,
    paired_difference,
    summarise,
)
from nemesis.finetuning import Arm, protocol_of
from nemesis.report.collect import labels_in_order, of_part
from nemesis.report.leakage import in_words, verdicts

if TYPE_CHECKING:
    from nemesis.runs import Part

PROTOCOLS = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuned"}
FROZEN = ("linear", "knn")
MEASURES = {  # of a superpatch or a stitched volume: input masked, region, metric
    "effective_mask_ratio": (True, None, "effective_mask_ratio"),
    "psnr_masked": (True, "masked", "psnr"),
    "psnr_visible_mean": (True, "masked", "psnr_visible_mean"),
    "psnr_visible": (True, "visible", "psnr"),
    "psnr_whole": (True, "whole", "psnr"),
    "ssim_whole": (True, "whole", "ssim"),
    "lpips_whole": (True, "whole", "lpips"),
    "psnr_masked_unmasked_input": (False, "masked", "psnr"),
    "psnr_visible_unmasked_input": (False, "visible", "psnr"),
    "psnr_unmasked_input": (False, "whole", "psnr"),
    "ssim_unmasked_input": (False, "whole", "ssim"),
    "lpips_unmasked_input": (False, "whole", "lpips"),
}
TRAINING = ["run", "label_fraction", "draw", "fold"]  # what tells a fine-tuning from another of its protocol
Scope = Literal["superpatch", "stitched"]

Entries = Sequence[Mapping[str, Any]]  # the runs (seeds) of one label


@dataclass(frozen=True)
class Budget:
    """What a pretraining took: steps, samples, voxels of scans that the network saw, and FLOP (forward and backward). All None
    where nothing was pretrained here."""

    steps: int | None
    samples: float | None
    voxels: float | None
    flop: float | None


@dataclass(frozen=True)
class Measured:
    """The specification and, by run id, what was measured; ``audit`` holds the pairs of scans that the pools share.

    ``peeked`` are the predictions of the released head, which no other table reads;
    ``trials`` are those of an adaptive sweep (number, state, embed_dim, mask_ratio, run, validation_auroc, steps), or None.
    """

    spec: Mapping[str, Any]
    rows: pd.DataFrame
    identities: Mapping[str, Mapping[str, Any]]
    predictions: Mapping[str, Scores]
    reconstructions: Mapping[str, pd.DataFrame]
    audit: pd.DataFrame
    segmentations: Mapping[str, pd.DataFrame]
    timings: pd.DataFrame
    peeked: Mapping[str, Scores]
    trials: pd.DataFrame | None = None

    def labels(self, part: Part) -> dict[str, Entries]:
        """The labels of a part of the experiment, in the order of the configuration, each with its runs."""
        own = of_part(self.spec, part)
        return {label: [e for e in own["runs"] if e["label"] == label] for label in labels_in_order(own)}

    def scores(self, entries: Entries) -> list[Scores]:
        """The predictions of each run, in the order of the seeds."""
        return [self.predictions[entry["run"]] for entry in entries]

    def under(self, entries: Entries, protocol: str) -> Entries:
        """The runs that a protocol was measured of; all, where it was of none. Not every seed need be fine-tuned."""
        found = [e for e in entries if (self.predictions[e["run"]].predictions["protocol"] == protocol).any()]
        return found or entries

    def tuned(self, entries: Entries, arm: Arm) -> list[Scores]:
        """What an arm's fine-tuned networks predicted, of each run that has it, under the protocol ``finetune``."""
        wanted = protocol_of("presence", arm)
        frames = [scores.predictions for scores in self.scores(entries)]
        found = [frame[frame["protocol"] == wanted] for frame in frames]
        return [Scores(frame.assign(protocol="finetune")) for frame in found if len(frame)]

    def segmented(self, entries: Entries, arm: Arm, fraction: float, metric: str = "dice") -> list[pd.DataFrame]:
        """A figure of every organ and scan by an arm's fine-tuned networks, of each run that has it."""
        frames = [self.segmentations[e["run"]] for e in entries if len(self.segmentations[e["run"]])]
        wanted = protocol_of("segmentation", arm)
        found = [f[(f["protocol"] == wanted) & (f["label_fraction"] == fraction) & (f["metric"] == metric)] for f in frames]
        return [frame for frame in found if len(frame)]

    def over_organs(self, runs: Sequence[pd.DataFrame], reference: Sequence[pd.DataFrame] = ()) -> Estimate:
        """See :func:`nemesis.evaluation.statistics.mean_over_organs`."""
        return mean_over_organs(runs, reference, self.spec["bootstrap"], self.spec["seed"])

    def budget(self, entries: Entries) -> Budget:
        """What these networks were pretrained for."""
        recipes = [self.identities[entry["run"]]["pretraining"] for entry in entries]
        if not entries or None in recipes:
            return Budget(*(None,) * 4)
        settings = self.identities[entries[0]["run"]]["settings"]
        samples = float(np.mean([recipe["steps"] * recipe["batch_size"] for recipe in recipes]))
        rows = self.rows_of(entries).groupby("metric")["value"].mean()
        macs, voxels = (float(rows[name]) if name in rows else math.nan for name in ("pretext_macs", "sample_voxels"))
        passes = PASSES_PER_STEP + bool(settings.get("recompute"))
        return Budget(recipes[0]["steps"], samples, samples * voxels, FLOP_PER_MAC * passes * macs * samples)

    def rows_of(self, entries: Entries, **conditions: Any) -> pd.DataFrame:
        """The rows of these runs whose columns have these values."""
        chosen = self.rows[self.rows["run"].isin([entry["run"] for entry in entries])]
        for name, value in conditions.items():
            chosen = chosen[chosen[name] == value]
        return chosen

    def looks(self, entries: Entries, protocol: str) -> pd.DataFrame:
        """The rows of every look at an inner validation while networks were fine-tuned, at the learning rate that was taken."""
        rows = self.rows_of(entries, protocol=protocol)
        taken = rows[rows["metric"] == "learning_rate"].set_index(TRAINING)["value"]
        told = rows[rows["metric"] == "validation"]
        at_it = told["learning_rate"].to_numpy() == taken.reindex(pd.MultiIndex.from_frame(told[TRAINING])).to_numpy()
        return told[at_it].astype({"step": int})

    def score(
        self, entries: Entries, protocol: str, fraction: float, metric: Metric = "auroc", easy_negatives: EasyNegatives = "out"
    ) -> Estimate:
        """See :func:`nemesis.evaluation.statistics.summarise`."""
        resamples, seed = self.spec["bootstrap"], self.spec["seed"]
        return summarise(self.scores(self.under(entries, protocol)), protocol, fraction, metric, easy_negatives, resamples, seed)

    def difference(self, entries: Entries, reference: Entries, protocol: str, fraction: float) -> Estimate:
        """Of AUROC; see :func:`nemesis.evaluation.statistics.paired_difference`."""
        ours, theirs = (self.scores(self.under(side, protocol)) for side in (entries, reference))
        resamples, seed = self.spec["bootstrap"], self.spec["seed"]
        return paired_difference(ours, theirs, protocol, fraction, resamples=resamples, seed=seed)

    @cached_property
    def fractions(self) -> list[float]:
        """Every label fraction at which methods were probed, in order; cells and variants are at the largest alone."""
        return self.fractions_of(*FROZEN)

    def fractions_of(self, *protocols: str) -> list[float]:
        """Every label fraction at which methods were judged by any of these protocols, in order."""
        chosen = [frame[frame["protocol"].isin(protocols)] for frame in self._of_methods]
        return sorted({float(fraction) for frame in chosen for fraction in frame["label_fraction"].unique()})

    @cached_property
    def probed(self) -> list[str]:
        """The protocols by which methods were judged, in the order of ``PROTOCOLS``."""
        found = {str(p) for frame in self._of_methods for p in frame["protocol"].unique()}
        return [protocol for protocol in PROTOCOLS if protocol in found]

    @property
    def _of_methods(self) -> list[pd.DataFrame]:
        return [self.predictions[entry["run"]].predictions for entries in self.labels("methods").values() for entry in entries]

    def reconstructed(
        self,
        entries: Entries,
        measure: str,
        dataset: str | None = None,
        scope: Scope = "superpatch",
        easy_negatives: EasyNegatives = "out",
    ) -> Estimate:
        """The mean of a figure of ``MEASURES``; see :meth:`of_superpatches`."""
        frames = self.of_superpatches(entries, measure, dataset, scope, easy_negatives)
        return mean_over_superpatches(frames, (), self.spec["bootstrap"], self.spec["seed"])

    def of_superpatches(
        self,
        entries: Entries,
        measure: str,
        dataset: str | None = None,
        scope: Scope = "superpatch",
        easy_negatives: EasyNegatives = "out",
    ) -> list[pd.DataFrame]:
        """A figure of ``MEASURES`` of every superpatch, or of every stitched volume, which holds its easy negatives, for each
        run: of one dataset, or of all. Of volumes ``n_superpatches`` counts the volumes."""
        frames = []
        for entry in entries:
            frame = self.reconstructions[entry["run"]]
            masked, region, metric = MEASURES[measure]
            chosen = frame[(frame["metric"] == metric) & (frame["input_masked"] == masked) & (frame["scope"] == scope)]
            chosen = chosen if easy_negatives == "in" else chosen[~chosen["easy"].astype(bool)]
            chosen = chosen if region is None else chosen[chosen["region"] == region]
            frames.append(chosen if dataset is None else chosen[chosen["dataset"] == dataset])
        return frames

    def hides(self, entries: Entries) -> bool:
        """Whether these networks were judged under a mask."""
        return any(bool(self.reconstructions[entry["run"]]["input_masked"].any()) for entry in entries)

    def whole(self, entries: Entries, metric: str, dataset: str | None = None) -> Estimate:
        """PSNR, SSIM or LPIPS of whole superpatches: pasted under the mask where there is one, else of the unmasked input."""
        return self.reconstructed(entries, f"{metric}_{'whole' if self.hides(entries) else 'unmasked_input'}", dataset)

    def leakage(self, entries: Entries, dataset: str | None = None) -> str:
        """Whether these networks had seen what they are judged on (:mod:`nemesis.report.leakage`): one set, or all."""
        trains = self.identities[entries[0]["run"]]["pretraining"] is not None
        found = verdicts(self.spec, self.audit, entries[0], trains)
        return in_words({name: told for name, told in found.items() if dataset in (None, name)})

    def training(self, part: Part) -> str:
        """A sentence: for how many steps, of how many superpatches, from which seeds the networks of a part were trained."""
        told: dict[str, list[str]] = {}
        for label, entries in self.labels(part).items():
            recipe = self.identities[entries[0]["run"]]["pretraining"]
            if recipe is not None:
                steps = f"{recipe['steps']} steps of {recipe['batch_size']} superpatches"
                told.setdefault(f"{steps}, {seeds_text(entries)}", []).append(label)
        if not told:
            return "Nothing was trained."
        ((usual, _),) = Counter({text: len(labels) for text, labels in told.items()}).most_common(1)
        others = [f"{', '.join(labels)} for {text}" for text, labels in told.items() if text != usual]
        return f"Trained for {'; '.join([usual, *others])}."


def seeds_text(entries: Entries) -> str:
    """The seeds of a label, and what one alone does not tell."""
    seeds = ", ".join(str(entry["seed"]) for entry in entries)
    return f"seeds {seeds}" if len(entries) > 1 else f"seed {seeds} (seed spread not measured)"


def read_measured(spec: Mapping[str, Any], collected: Path) -> Measured:
    """See :class:`Measured`; ``collected`` is the folder that ``collect`` wrote."""
    runs = pd.read_parquet(collected / "runs.parquet", columns=["run", "identity_json"])
    trials = collected / "trials.parquet"
    ids = list(dict.fromkeys(entry["run"] for entry in spec["runs"]))
    words = ["run", "protocol", "organ", "patient"]
    predictions, peeked = (_by_run(collected / f"{name}.parquet", ids, words) for name in ("predictions", "peeking"))
    return Measured(
        spec,
        pd.read_parquet(collected / "rows.parquet"),
        {run: json.loads(text) for run, text in zip(runs["run"], runs["identity_json"], strict=True)},
        {run: Scores(frame) for run, frame in predictions.items()},
        _by_run(collected / "reconstructions.parquet", ids, ["run", "dataset", "patient", "scope", "region", "metric"]),
        pd.read_parquet(collected / "audit.parquet"),
        _by_run(collected / "segmentations.parquet", ids, []),
        pd.read_parquet(collected / "timings.parquet"),
        {run: Scores(frame) for run, frame in peeked.items()},
        pd.read_parquet(trials) if trials.is_file() else None,
    )


def _by_run(path: Path, ids: Sequence[str], words: list[str]) -> dict[str, pd.DataFrame]:
    """The rows of each run: ``collect`` wrote a row group for each, so that the file is read once; none of its own, no rows."""
    file = pq.ParquetFile(path, read_dictionary=words)
    found = {run: file.schema_arrow.empty_table().to_pandas() for run in ids}
    for number in range(file.num_row_groups):
        group = file.read_row_group(number)
        if len(group):
            found[group["run"][0].as_py()] = group.to_pandas()
    return found
