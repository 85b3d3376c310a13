"""What the two sides of a claim differ by, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
from scipy.stats import t as student

from nemesis.evaluation.cells import Metric
from nemesis.evaluation.cost import FLOP_PER_MAC, superpatches
from nemesis.evaluation.statistics import LEVEL, Estimate, Scores, mean_over_superpatches, paired_difference, summarise
from nemesis.finetuning import protocol_of
from nemesis.report.claims import Metric as ClaimedMetric
from nemesis.report.claims import Side
from nemesis.report.tables.measured import Measured
from nemesis.report.tables.sides import Found, NotMeasured, dataset_of
from nemesis.report.verdicts import exactly

SHARED = "compared"  # what the scores of both sides are filed under, whatever protocol they are of
MIN_TRAININGS_FOR_INTERVAL = 5
FINE_TUNING_KEYS = "`finetune.tasks`, `finetune.label_fractions`"  # of the configuration: what is fine-tuned, and on what
COUNTED = {"pretext_gmac": 1e-9, "pretext_gflop": 1e-9 * FLOP_PER_MAC, "volume_gmac": 1e-9}
UNDER_MASK = {"psnr": "psnr_whole", "ssim": "ssim_whole", "lpips": "lpips_whole", "psnr_masked": "psnr_masked"}
NOTHING_HIDDEN = {"psnr": "psnr_unmasked_input", "ssim": "ssim_unmasked_input", "lpips": "lpips_unmasked_input"}


class Differences:
    """Differences between sides. The scores of a side are prepared once, whichever claims ask for them."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self._scores: dict[tuple[Any, ...], list[Scores]] = {}

    def between(self, metric: ClaimedMetric, left: Found, right: Found | float | None) -> Estimate:
        """Left minus right, which may be a number; the left alone where there is no right side.

        Raises:
            NotMeasured: a side was not measured by this metric, or not on what the other was.
        """
        other = right if isinstance(right, Found) else None
        if metric in COUNTED:
            found = exactly(self._counted(metric, left) - (self._counted(metric, other) if other else 0))
        elif metric == "steps":
            assert other is not None  # a number of steps by itself says nothing
            found = self._steps(left, other)
        elif metric == "dice":
            found = self.measured.over_organs(self._dice(left), self._dice(other) if other else ())
        elif metric in get_args(Metric):
            found = self._presence(cast(Metric, metric), left, other)
        else:
            found = self._reconstruction(metric, left, other)
        return _less(found, right) if isinstance(right, float) else found

    # ------------------------------------------------------------------------------------------------- organ presence

    def _presence(self, metric: Metric, left: Found, right: Found | None) -> Estimate:
        """In the folds that both sides were tested on, whatever their protocols and label fractions."""
        sides = [found for found in (left, right) if found]
        if len({self.measured.identities[found.entries[0]["run"]]["superpatch"] for found in sides}) > 1:
            raise NotMeasured("the sides are scored on superpatches of different sizes")
        at = [[_at(frame, f.side.fraction) for frame in self._predictions(f)] for f in sides]
        if not (folds := frozenset(set.intersection(*(set(frame["fold"].unique()) for side in at for frame in side)))):
            raise NotMeasured(f"{' and '.join(found.name for found in sides)} were tested on different folds")
        # the draws of the lesser share of labels say what other training patients would change
        fraction, fewest = min(((f.side.fraction, side[0]) for f, side in zip(sides, at, strict=True)), key=lambda pair: pair[0])
        draws = frozenset(fewest["draw"].unique())
        protocol = _protocol(left.side) if len({_protocol(found.side) for found in sides}) == 1 else SHARED
        scores = [self._scores_of(found, protocol, folds, fraction, draws) for found in sides]
        resamples, seed = self.measured.spec["bootstrap"], self.measured.spec["seed"]
        if right is None:
            return summarise(scores[0], protocol, fraction, metric, resamples=resamples, seed=seed)
        return paired_difference(scores[0], scores[1], protocol, fraction, metric, resamples=resamples, seed=seed)

    def _scores_of(
        self, found: Found, protocol: str, folds: frozenset[Any], fraction: float, draws: frozenset[Any]
    ) -> list[Scores]:
        """Filed under this protocol and label fraction; what is of more labels, of which there is one draw, stands beside every
        draw. What is filed so and tested there alone is taken as it is: other tables have resampled it already."""
        side, predictions = found.side, self._predictions(found)
        own = frozenset(fold for frame in predictions for fold in _at(frame, side.fraction)["fold"].unique())
        if protocol == _protocol(side) and fraction == side.fraction and folds >= own:
            return self._runs(found)
        key = (tuple(entry["run"] for entry in found.entries), _protocol(side), side.fraction, protocol, folds, fraction, draws)
        if key not in self._scores:
            frames = [frame[frame["fold"].isin(folds)].assign(protocol=protocol) for frame in predictions]
            if side.fraction != fraction:
                frames = [_beside(_at(frame, side.fraction).assign(label_fraction=fraction), draws) for frame in frames]
            self._scores[key] = [Scores(frame) for frame in frames]
        return self._scores[key]

    def _predictions(self, found: Found) -> list[pd.DataFrame]:
        """By the side's protocol, at every label fraction."""
        frames = [run.predictions for run in self._runs(found)]
        return [frame[frame["protocol"] == _protocol(found.side)] for frame in frames]

    def _runs(self, found: Found) -> list[Scores]:
        """Those that have the side's protocol and label fraction."""
        side = found.side
        runs = [
            run
            for run in self.measured.scores(found.entries)
            if (_at(run.predictions, side.fraction)["protocol"] == _protocol(side)).any()
        ]
        if not runs:
            keys = FINE_TUNING_KEYS if side.protocol == "finetune" else "`probe.protocols`, `probe.label_fractions`"
            raise NotMeasured(f"no {found.name} ({keys if side.arm == 'pretrained' else '`finetune.controls`'})")
        return runs

    # ------------------------------------------------------------------------------- segmentation and reconstruction

    def _dice(self, found: Found) -> list[pd.DataFrame]:
        frames = self.measured.segmented(found.entries, found.side.arm, found.side.fraction)
        if not frames:
            keys = FINE_TUNING_KEYS if found.side.arm == "pretrained" else "`finetune.controls`"
            raise NotMeasured(f"no segmentation by {found.name} ({keys})")
        return frames

    def _reconstruction(self, metric: str, left: Found, right: Found | None) -> Estimate:
        """Of superpatches: paired over the patients of both sides, or where these are different people as two samples."""

        def mean(side: Sequence[pd.DataFrame], reference: Sequence[pd.DataFrame] = ()) -> Estimate:
            return mean_over_superpatches(side, reference, self.measured.spec["bootstrap"], self.measured.spec["seed"])

        ours = self._figures(metric, left)
        if right is None:
            return mean(ours)
        theirs = self._figures(metric, right)
        common = set.intersection(*(set(frame["patient"].unique()) for frame in (*ours, *theirs)))
        if not common:
            return _unpaired(mean(ours), mean(theirs))
        both = [[frame[frame["patient"].isin(common)] for frame in side] for side in (ours, theirs)]
        return mean(*both)

    def _figures(self, metric: str, found: Found) -> list[pd.DataFrame]:
        """A line per superpatch, of each run."""
        measure = (UNDER_MASK if self.measured.hides(found.entries) else NOTHING_HIDDEN).get(metric)
        dataset = dataset_of(self.measured, found.side)
        frames = self.measured.of_superpatches(found.entries, measure, dataset) if measure else []
        if not all(len(frame) for frame in frames) or not frames:
            raise NotMeasured(f"no {metric.partition('_')[0].upper()} of {found.name} (`reconstruction`)")
        return frames

    # ---------------------------------------------------------------------------------------------- cost, convergence

    def _counted(self, metric: str, found: Found) -> float:
        rows = self.measured.rows_of(found.entries, metric="pretext_macs")["value"]
        if rows.empty:
            raise NotMeasured(f"the pretext of {found.name} was not counted")
        edge = self.measured.identities[found.entries[0]["run"]]["superpatch"]
        return COUNTED[metric] * float(rows.mean()) * (superpatches(edge) if metric == "volume_gmac" else 1)

    def _steps(self, left: Found, right: Found) -> Estimate:
        """Until the validation reaches the lesser of both sides' best; paired over trainings: seeds, folds and draws."""
        ours, theirs = (self._curves(found) for found in (left, right))
        gaps = []
        for training in sorted(set(ours) & set(theirs)):
            goal = min(ours[training].max(), theirs[training].max())
            gaps.append(float(_first(ours[training], goal) - _first(theirs[training], goal)))
        return _over_trainings(gaps)

    def _curves(self, found: Found) -> dict[tuple[Any, ...], pd.Series[float]]:
        """The validation of every training by step, as the table of convergence has it."""
        side = found.side
        looks = self.measured.looks(found.entries, protocol_of("segmentation", side.arm)).dropna(subset=["value"])
        groups = _at(looks, side.fraction).groupby(["run", "fold", "draw"])
        curves = {key: group.set_index("step")["value"].sort_index() for key, group in groups}
        if not (curves := {key: curve for key, curve in curves.items() if len(curve) > 1}):
            raise NotMeasured(f"no validation at several steps of the segmentation by {found.name} (`finetune.checks`)")
        return curves


def _protocol(side: Side) -> str:
    """What predictions call it."""
    return protocol_of("presence", side.arm) if side.protocol == "finetune" else side.protocol or "linear"


def _at(predictions: pd.DataFrame, fraction: float) -> pd.DataFrame:
    return predictions[predictions["label_fraction"] == fraction]


def _beside(predictions: pd.DataFrame, draws: frozenset[Any]) -> pd.DataFrame:
    """One draw's predictions said again for each of these draws; several stay what they are."""
    if predictions["draw"].nunique() > 1:
        return predictions
    return pd.concat([predictions.assign(draw=draw) for draw in sorted(draws)], ignore_index=True)


def _less(estimate: Estimate, value: float) -> Estimate:
    point, low, high = (None if end is None else end - value for end in (estimate.point, estimate.low, estimate.high))
    return replace(estimate, point=point, low=low, high=high)


def _unpaired(ours: Estimate, theirs: Estimate) -> Estimate:
    """Of independent samples, from the interval of each (Newcombe, Statistics in Medicine 1998, method 10)."""
    a, b = ours, theirs
    found = replace(a, low=None, high=None, n_patients=a.n_patients + b.n_patients, note=a.note or b.note)
    if a.point is None or b.point is None:
        return replace(found, point=None)
    found = replace(found, point=a.point - b.point)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return found
    down, up = math.hypot(a.point - a.low, b.high - b.point), math.hypot(a.high - a.point, b.point - b.low)
    return replace(found, low=a.point - b.point - down, high=a.point - b.point + up)


def _first(curve: pd.Series[float], goal: float) -> int:
    return int(curve.index[int(np.argmax(curve.to_numpy() >= goal))])


def _over_trainings(gaps: Sequence[float]) -> Estimate:
    """Mean with Student's interval over trainings."""
    n = len(gaps)
    if n < MIN_TRAININGS_FOR_INTERVAL:
        note = f"no interval: {n} training{'s' * (n != 1)} of both sides, at least {MIN_TRAININGS_FOR_INTERVAL} are needed"
        return replace(exactly(0.0), point=float(np.mean(gaps)) if gaps else None, low=None, high=None, note=note)
    point = float(np.mean(gaps))
    if len(set(gaps)) == 1:
        note = f"no interval: all {n} trainings differ by as many steps, for want of looks between"
        return replace(exactly(point), low=None, high=None, note=note)
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1) * np.std(gaps, ddof=1) / math.sqrt(n))
    return replace(exactly(point), low=point - reach, high=point + reach)
